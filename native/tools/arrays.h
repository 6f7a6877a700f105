/* Reads arrays and pictures from files, and writes arrays: .npy, raw numbers, PPM and PGM. */
#ifndef MTLC_ARRAYS_H
#define MTLC_ARRAYS_H

#include "mtlc.h"

#include <stdbool.h>

enum { LINE = 1024 };

/* An array in memory of its own: free `memory`. */
typedef struct array {
    mtlc_view view;
    void *memory;
} array;

/* A picture of 8 bits, (height, width, channels): free `pixels`. */
typedef struct picture {
    int64_t height, width, channels;
    uint8_t *pixels;
} picture;

/* Each gives false with one line in `why`. */

/* A whole file: free `data`. */
bool read_whole_file(const char *path, uint8_t **data, size_t *bytes, char why[LINE]);
/* NumPy's format, versions 1 to 3, in the order of C and of this machine's bytes. */
bool read_npy(const char *path, array *made, char why[LINE]);
/* Nothing but numbers, of the input's dtype and shape. One size that is free is found from the file's. */
bool read_raw(const char *path, const mtlc_tensor_info *as, array *made, char why[LINE]);
/* Binary PPM (P6) or PGM (P5) of 8 bits. */
bool read_pnm(const char *path, picture *made, char why[LINE]);
/* Writes beside the path first, then renames. */
bool write_npy(const char *path, const mtlc_view *from, char why[LINE]);

#endif
