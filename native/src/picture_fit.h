/* Fits pictures into an input of another size, as the Python runtime's picture_fit.py does, to the bit. */
#ifndef MTLC_PICTURE_FIT_H
#define MTLC_PICTURE_FIT_H

#include <stdbool.h>
#include <stdint.h>

typedef enum resize_kind { RESIZE_STRETCH, RESIZE_PAD, RESIZE_PAD_END } resize_kind;

/* A picture of 8 bits, (height, width, channels). */
typedef struct pixels {
    int64_t height, width, channels;
    const uint8_t *at;
} pixels;

/* The picture in the size (height, width), in `target`, of that size; what it does not cover is `fill`. False where
 * there is no memory. */
bool fit_picture(const pixels *from, int64_t height, int64_t width, resize_kind how, uint8_t fill, uint8_t *target);

#endif
