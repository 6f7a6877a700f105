/* Reads the sections of a manifest, each in a file of its own, and lists of them. */
#ifndef MTLC_MANIFEST_SECTIONS_H
#define MTLC_MANIFEST_SECTIONS_H

#include "manifest_values.h"

#include <string.h>

typedef void read_entry(check *of, const json *value, const key *at, void *into);

/* The value of a key of `table` that must be there, and the key as `at`. */
#define NEED(variable, table, name, inside)                                                                            \
    const key variable##_at = key_named(inside, TEXT(name));                                                           \
    const json *variable = need(of, table, name, inside)

/* Sets `target` to what `reader` makes of the value of a key that must be there. */
#define READ(target, reader, table, name, inside)                                                                      \
    do {                                                                                                               \
        NEED(needed, table, name, inside);                                                                             \
        target = reader(of, needed, &needed_at);                                                                       \
    } while (0)

/* Reads a list's values into an array of `size` bytes each, which *array_pointer is set to; gives their count. */
size_t read_list(check *of, const json *value, const key *at, size_t most, size_t size, void *array_pointer,
                 read_entry *read);
/* The same of a table, which may be NULL: it has none then. */
size_t read_table(check *of, const json *value, const key *at, size_t size, void *array_pointer, read_entry *read);

detection *read_postprocess(check *of, const json *value, const key *at);
widths *read_widths(check *of, const json *value, const key *at);

#endif
