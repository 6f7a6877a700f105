"""What the tests share: small networks, jobs, bundles written by hand, fakes of drivers, and specifications of backends."""
