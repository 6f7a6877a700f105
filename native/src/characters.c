/* Tells characters of names apart: letters of identifiers, and what is shown. Beyond ASCII by Unicode's tables. */
#include "characters.h"

#include <stdint.h>

struct range {
    uint32_t first, last;
};
struct fold {
    uint32_t from, to[3];
};

#include "character_tables.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))

static bool is_in(const struct range *table, size_t count, uint32_t c)
{
    size_t low = 0, high = count;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (table[middle].last < c) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < count && table[low].first <= c;
}

/* The character at `at`, which moves behind it. The text is UTF-8, or has halves of surrogate pairs. */
static uint32_t next(const char **at)
{
    const unsigned char *c = (const unsigned char *)*at;
    const int length = c[0] < 0x80 ? 1 : c[0] < 0xE0 ? 2 : c[0] < 0xF0 ? 3 : 4;
    uint32_t value = length == 1 ? c[0] : c[0] & (0xFFu >> (length + 1));
    for (int i = 1; i < length; i++) {
        value = value << 6 | (c[i] & 0x3F);
    }
    *at += length;
    return value;
}

size_t utf8_length(const unsigned char *at, size_t left)
{
    const unsigned lead = at[0];
    const size_t length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    if (length == 0 || length > left) {
        return 0;
    }
    for (size_t i = 1; i < length; i++) {
        if ((at[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    if ((lead == 0xE0 && at[1] < 0xA0) || (lead == 0xED && at[1] > 0x9F) || (lead == 0xF0 && at[1] < 0x90) ||
        (lead == 0xF4 && at[1] > 0x8F)) {
        return 0;
    }
    return length;
}

bool is_utf8(text of)
{
    for (size_t i = 0, length; i < of.length; i += length) {
        length = utf8_length((const unsigned char *)of.data + i, of.length - i);
        if (length == 0) {
            return false;
        }
    }
    return true;
}

bool is_identifier(text of)
{
    const char *at = of.data, *end = of.data + of.length;
    bool good = of.length > 0;
    while (good && at < end) {
        const bool first = at == of.data;
        const uint32_t c = next(&at);
        if (c < 0x80) {
            good = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (!first && c >= '0' && c <= '9');
        } else {
            good = first ? is_in(STARTS, COUNT(STARTS), c) : is_in(CONTINUES, COUNT(CONTINUES), c);
        }
    }
    return good;
}

bool is_printable(text of)
{
    const char *at = of.data, *end = of.data + of.length;
    bool good = true;
    while (good && at < end) {
        const uint32_t c = next(&at);
        good = c < 0x80 ? c >= 0x20 && c < 0x7F : is_in(PRINTABLE, COUNT(PRINTABLE), c);
    }
    return good;
}

static char *put(char *to, uint32_t c)
{
    static const uint32_t above[] = {0x80, 0x800, 0x10000};
    int more = 0;
    while (more < 3 && c >= above[more]) {
        more++;
    }
    static const unsigned lead[] = {0, 0xC0, 0xE0, 0xF0};
    *to++ = (char)(lead[more] | c >> 6 * more);
    while (more-- > 0) {
        *to++ = (char)(0x80 | (c >> 6 * more & 0x3F));
    }
    return to;
}

text folded(text of, char *target)
{
    const char *at = of.data, *end = of.data + of.length;
    char *to = target;
    while (at < end) {
        const uint32_t c = next(&at);
        if (c < 0x80) {
            *to++ = (char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
            continue;
        }
        size_t low = 0, high = COUNT(FOLDS);
        while (low < high) {
            const size_t middle = (low + high) / 2;
            if (FOLDS[middle].from < c) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if (low == COUNT(FOLDS) || FOLDS[low].from != c) {
            to = put(to, c);
            continue;
        }
        for (int i = 0; i < 3 && FOLDS[low].to[i] != 0; i++) {
            to = put(to, FOLDS[low].to[i]);
        }
    }
    *to = '\0';
    return (text){target, (size_t)(to - target)};
}
