/* Unpacks deflate (RFC 1951), and computes the sums that zips have (CRC-32). */
#ifndef MTLC_INFLATE_H
#define MTLC_INFLATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Unpacks `packed` into `target`, which must be filled to its end and no further. False for data that is damaged. */
bool inflate_all(const uint8_t *packed, size_t packed_bytes, uint8_t *target, size_t bytes);

uint32_t crc32_of(const uint8_t *data, size_t bytes);

#endif
