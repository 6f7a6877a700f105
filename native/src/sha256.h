/* Computes SHA-256 (FIPS 180-4). */
#ifndef MTLC_SHA256_H
#define MTLC_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct sha256 {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[64];
} sha256;

void sha256_begin(sha256 *of);
void sha256_add(sha256 *of, const void *data, size_t bytes);
/* The digest in lower-case hexadecimal and a zero byte. */
void sha256_end(sha256 *of, char hexadecimal[65]);

#endif
