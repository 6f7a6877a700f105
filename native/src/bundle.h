/* Opens a bundle, without trusting anything in it. */
#ifndef MTLC_BUNDLE_H
#define MTLC_BUNDLE_H

#include "manifest.h"

#include <sys/stat.h>

/* What of a file changes when another takes its place or somebody writes to it. */
typedef struct identity {
    dev_t device;
    ino_t inode;
    off_t bytes;
    struct timespec written, changed;
} identity;

typedef struct bundle {
    arena memory;
    text path;
    text folder;     /* where the files are: the path, or where a zip was unpacked */
    int held;        /* the lock of that folder, -1 for one of the caller's */
    long owner;      /* the process that unpacked it, which removes it */
    const manifest *unpacked; /* what that folder holds */
    manifest *manifest;
    identity *seen; /* of each of the manifest's files, and of manifest.json at the end */
} bundle;

/* Opens and checks the bundle at `path`. Free what it holds by close_bundle, also after a refusal. */
mtlc_code open_bundle(bundle *made, const char *path, mtlc_error *error);
void close_bundle(bundle *of);

/* Unpacks the zip that is open as `file` into a folder of its own, which close_bundle removes, and reads its manifest.
 * For open_bundle. */
void unpack_bundle(check *of, bundle *made, const uint8_t *zip, int64_t bytes);
void remove_unpacked(bundle *of);
/* Refuses too many or too large files, and names that differ in case only. */
void check_limits(check *of, const manifest *in);

/* The path of a payload, in the arena; NULL where there is no memory. */
const char *payload_path(arena *memory, const bundle *of, text name);

/* Refuses a file, and all that programs read beside it, that is not what was checked. Content that is the same in a
 * file that took the other's place is fine. */
mtlc_code check_unchanged(bundle *of, text name, mtlc_error *error);

#endif
