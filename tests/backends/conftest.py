from __future__ import annotations

from collections.abc import Mapping

import pytest
from backend_samples import Case, make_cases


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Case]:
    return make_cases(tmp_path_factory.mktemp("cases"))
