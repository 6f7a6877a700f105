/* Gives memory that is freed all at once, and texts that know their length. */
#include "arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 16384, ALIGNMENT = 16 };

struct arena_block {
    arena_block *before;
    size_t size;
};

void *arena_take(arena *from, size_t bytes)
{
    const size_t head = (sizeof(arena_block) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (bytes > SIZE_MAX / 2) {
        return NULL;
    }
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (from->last == NULL || from->last->size - from->used < bytes) {
        const size_t size = head + (bytes > BLOCK ? bytes : BLOCK);
        arena_block *made = malloc(size);
        if (made == NULL) {
            return NULL;
        }
        made->before = from->last;
        made->size = size;
        from->last = made;
        from->used = head;
    }
    void *found = (char *)from->last + from->used;
    from->used += bytes;
    return memset(found, 0, bytes);
}

void arena_free(arena *from)
{
    while (from->last != NULL) {
        arena_block *before = from->last->before;
        free(from->last);
        from->last = before;
    }
    from->used = 0;
}

text text_of(const char *data)
{
    return (text){data, strlen(data)};
}

bool text_equal(text one, text other)
{
    return one.length == other.length && memcmp(one.data, other.data, one.length) == 0;
}

bool text_ends(text whole, const char *end)
{
    const size_t length = strlen(end);
    return whole.length >= length && memcmp(whole.data + whole.length - length, end, length) == 0;
}

int text_compare(text one, text other)
{
    const size_t shorter = one.length < other.length ? one.length : other.length;
    const int order = memcmp(one.data, other.data, shorter);
    return order != 0 ? order : (one.length > other.length) - (one.length < other.length);
}

size_t text_characters(text one)
{
    size_t found = 0;
    for (size_t i = 0; i < one.length; i++) {
        found += ((unsigned char)one.data[i] & 0xC0) != 0x80;
    }
    return found;
}
