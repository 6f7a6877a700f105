/* Unpacks deflate (RFC 1951), and computes the sums that zips have (CRC-32). */
#include "inflate.h"

#include <string.h>

enum { MOST_BITS = 15, LITERALS = 288, DISTANCES = 30, LENGTH_CODES = 19 };

typedef struct stream {
    const uint8_t *at, *end;
    uint64_t bits;
    int held; /* bits in `bits` */
    uint8_t *target;
    size_t done, room;
} stream;

/* A Huffman code: how many codes there are of each length, and their symbols in order. */
typedef struct code {
    uint16_t counts[MOST_BITS + 1], symbols[LITERALS];
} code;

/* `count` bits (at most 16), the lowest first; -1 where the data ends. */
static int take_bits(stream *in, int count)
{
    while (in->held < count) {
        if (in->at == in->end) {
            return -1;
        }
        in->bits |= (uint64_t)*in->at++ << in->held;
        in->held += 8;
    }
    const int found = (int)(in->bits & (((uint64_t)1 << count) - 1));
    in->bits >>= count;
    in->held -= count;
    return found;
}

/* The lengths of the codes of `count` symbols; false where they are no whole code. One code alone may be of one bit. */
static bool make_code(code *made, const uint8_t *lengths, int count)
{
    uint16_t offsets[MOST_BITS + 2] = {0};
    int left = 1, used = 0;
    memset(made, 0, sizeof *made);
    for (int i = 0; i < count; i++) {
        made->counts[lengths[i]]++;
    }
    used = count - made->counts[0];
    for (int length = 1; length <= MOST_BITS; length++) {
        left = 2 * left - made->counts[length];
        if (left < 0) {
            return false;
        }
        offsets[length + 1] = (uint16_t)(offsets[length] + made->counts[length]);
    }
    for (int i = 0; i < count; i++) {
        if (lengths[i] != 0) {
            made->symbols[offsets[lengths[i]]++] = (uint16_t)i;
        }
    }
    return left == 0 || (used <= 1 && made->counts[1] == used);
}

/* The next symbol; -1 where there is none. */
static int take_symbol(stream *in, const code *by)
{
    int value = 0, first = 0, index = 0;
    for (int length = 1; length <= MOST_BITS; length++) {
        const int bit = take_bits(in, 1);
        if (bit < 0) {
            return -1;
        }
        value |= bit;
        const int count = by->counts[length];
        if (value - count < first) {
            return by->symbols[index + (value - first)];
        }
        index += count;
        first = (first + count) << 1;
        value <<= 1;
    }
    return -1;
}

static bool copy_stored(stream *in)
{
    in->bits = 0, in->held = 0; /* the rest of the byte; never more than seven bits are held between symbols */
    if (in->end - in->at < 4) {
        return false;
    }
    const size_t length = in->at[0] | (size_t)in->at[1] << 8;
    const size_t check = in->at[2] | (size_t)in->at[3] << 8;
    in->at += 4;
    if (length != (~check & 0xFFFF) || length > (size_t)(in->end - in->at) || length > in->room - in->done) {
        return false;
    }
    memcpy(in->target + in->done, in->at, length);
    in->at += length;
    in->done += length;
    return true;
}

static bool copy_coded(stream *in, const code *literals, const code *distances)
{
    static const uint16_t bases[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                       31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const uint8_t extras[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                       2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static const uint16_t far_bases[30] = {1,   2,   3,   4,    5,    7,    9,    13,   17,   25,
                                           33,  49,  65,  97,   129,  193,  257,  385,  513,  769,
                                           1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    static const uint8_t far_extras[30] = {0, 0, 0, 0, 1, 1, 2, 2,  3,  3,  4,  4,  5,  5,  6,
                                           6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13};
    for (;;) {
        const int symbol = take_symbol(in, literals);
        if (symbol < 0 || symbol == 256) {
            return symbol == 256;
        }
        if (symbol < 256) {
            if (in->done == in->room) {
                return false;
            }
            in->target[in->done++] = (uint8_t)symbol;
            continue;
        }
        const int place = symbol - 257;
        const int more = place < 29 ? take_bits(in, extras[place]) : -1;
        const int far = more < 0 ? -1 : take_symbol(in, distances);
        const int far_more = far < 0 || far >= DISTANCES ? -1 : take_bits(in, far_extras[far]);
        if (far_more < 0) {
            return false;
        }
        const size_t length = (size_t)bases[place] + (size_t)more, back = (size_t)far_bases[far] + (size_t)far_more;
        if (back > in->done || length > in->room - in->done) {
            return false;
        }
        for (size_t i = 0; i < length; i++, in->done++) {
            in->target[in->done] = in->target[in->done - back];
        }
    }
}

static bool copy_fixed(stream *in)
{
    uint8_t lengths[LITERALS];
    code literals, distances;
    for (int i = 0; i < LITERALS; i++) {
        lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    }
    make_code(&literals, lengths, LITERALS);
    memset(lengths, 5, DISTANCES);
    make_code(&distances, lengths, DISTANCES); /* 30 of 32: two have no meaning */
    return copy_coded(in, &literals, &distances);
}

static bool copy_dynamic(stream *in)
{
    static const uint8_t order[LENGTH_CODES] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    uint8_t lengths[LITERALS + DISTANCES + 2] = {0};
    code of_lengths, literals, distances;
    const int literal_count = take_bits(in, 5) + 257, distance_count = take_bits(in, 5) + 1;
    const int length_count = take_bits(in, 4) + 4;
    if (literal_count < 257 || literal_count > 286 || distance_count < 1 || distance_count > DISTANCES ||
        length_count < 4) {
        return false;
    }
    for (int i = 0; i < length_count; i++) {
        const int length = take_bits(in, 3);
        if (length < 0) {
            return false;
        }
        lengths[order[i]] = (uint8_t)length;
    }
    if (!make_code(&of_lengths, lengths, LENGTH_CODES)) {
        return false;
    }
    memset(lengths, 0, sizeof lengths);
    for (int i = 0; i < literal_count + distance_count;) {
        const int symbol = take_symbol(in, &of_lengths);
        int repeats = 1, value = symbol;
        if (symbol < 0 || (symbol == 16 && i == 0)) {
            return false;
        }
        if (symbol >= 16) {
            const int more = take_bits(in, symbol == 16 ? 2 : symbol == 17 ? 3 : 7);
            value = symbol == 16 ? lengths[i - 1] : 0;
            repeats = (symbol == 18 ? 11 : 3) + more;
            if (more < 0 || i + repeats > literal_count + distance_count) {
                return false;
            }
        }
        while (repeats-- > 0) {
            lengths[i++] = (uint8_t)value;
        }
    }
    return lengths[256] != 0 && make_code(&literals, lengths, literal_count) &&
           make_code(&distances, lengths + literal_count, distance_count) && copy_coded(in, &literals, &distances);
}

bool inflate_all(const uint8_t *packed, size_t packed_bytes, uint8_t *target, size_t bytes)
{
    stream in = {.at = packed, .end = packed + packed_bytes, .target = target, .room = bytes};
    for (int last = 0; last == 0;) {
        last = take_bits(&in, 1);
        const int kind = last < 0 ? -1 : take_bits(&in, 2);
        const bool good = kind == 0   ? copy_stored(&in)
                          : kind == 1 ? copy_fixed(&in)
                          : kind == 2 ? copy_dynamic(&in)
                                      : false;
        if (!good) {
            return false;
        }
    }
    return in.done == bytes;
}

uint32_t crc32_of(const uint8_t *data, size_t bytes)
{
    uint32_t table[256], sum = 0xFFFFFFFFu;
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++) {
            table[i] = table[i] & 1 ? table[i] >> 1 ^ 0xEDB88320u : table[i] >> 1;
        }
    }
    for (size_t i = 0; i < bytes; i++) {
        sum = table[(sum ^ data[i]) & 0xFF] ^ sum >> 8;
    }
    return ~sum;
}
