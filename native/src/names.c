/* Finds names fast: gives each different text a number, from 0 on. */
#include "names.h"

#include <stdint.h>
#include <string.h>

static size_t hash(text of)
{
    uint64_t value = 0xcbf29ce484222325u; /* FNV-1a */
    for (size_t i = 0; i < of.length; i++) {
        value = (value ^ (unsigned char)of.data[i]) * 0x100000001b3u;
    }
    return (size_t)(value ^ value >> 32);
}

/* The slot that holds `name`, or the free one where it belongs. */
static size_t slot_of(const names *in, text name)
{
    size_t slot = hash(name) & (in->slot_count - 1);
    while (in->slots[slot] != 0 && !text_equal(in->listed[in->slots[slot] - 1], name)) {
        slot = (slot + 1) & (in->slot_count - 1);
    }
    return slot;
}

static void grow(check *of, names *in)
{
    const size_t room = in->room ? 2 * in->room : 32;
    text *listed = take(of, room, sizeof *listed);
    if (in->count > 0) {
        memcpy(listed, in->listed, in->count * sizeof *listed);
    }
    in->listed = listed;
    in->room = room;
    in->slot_count = 2 * room;
    in->slots = take(of, in->slot_count, sizeof *in->slots);
    for (size_t i = 0; i < in->count; i++) {
        in->slots[slot_of(in, listed[i])] = i + 1;
    }
}

size_t names_add(check *of, names *in, text name, bool *added)
{
    if (in->count == in->room) {
        grow(of, in);
    }
    const size_t slot = slot_of(in, name);
    const bool is_new = in->slots[slot] == 0;
    if (is_new) {
        in->listed[in->count++] = name;
        in->slots[slot] = in->count;
    }
    if (added != NULL) {
        *added = is_new;
    }
    return in->slots[slot] - 1;
}

long names_find(const names *in, text name)
{
    if (in->count == 0) {
        return NO_NAME;
    }
    const size_t slot = slot_of(in, name);
    return in->slots[slot] == 0 ? NO_NAME : (long)in->slots[slot] - 1;
}
