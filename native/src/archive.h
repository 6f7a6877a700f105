/* Reads bundles in one zip file: checked entry by entry, as the Python runtime checks them, then unpacked. */
#ifndef MTLC_ARCHIVE_H
#define MTLC_ARCHIVE_H

#include "names.h"

#include <stdint.h>

/* An entry of a zip. Its data is in the zip's bytes. */
typedef struct entry {
    text name;
    unsigned flags, method;
    uint32_t crc, mode;
    int64_t packed_bytes, bytes, offset, data;
} entry;

typedef struct archive {
    const uint8_t *at; /* the whole zip */
    int64_t bytes;
    entry *entries;
    size_t count;
    names by_name; /* numbers are places in `entries` */
} archive;

/* Reads and checks the directory: paths, links, compressions, sizes, and that no two entries share bytes. */
void read_archive(check *of, archive *made, const uint8_t *at, int64_t bytes);

/* Unpacks an entry into `target`, of entry.bytes; false for data that is damaged. */
bool unpack_entry(const archive *in, const entry *one, uint8_t *target);

#endif
