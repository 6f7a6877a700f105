/* Gives memory that is freed all at once, and texts that know their length. */
#ifndef MTLC_ARENA_H
#define MTLC_ARENA_H

#include <stdbool.h>
#include <stddef.h>

typedef struct arena_block arena_block;

/* Memory of one bundle, or of one plan. Begin with all zeros. */
typedef struct arena {
    arena_block *last;
    size_t used;
} arena;

/* Zeroed memory of `bytes`, aligned for any type; NULL where there is none left. */
void *arena_take(arena *from, size_t bytes);

/* Frees all that was taken. */
void arena_free(arena *from);

/* A text of UTF-8 with its length in bytes; a zero byte follows it. */
typedef struct text {
    const char *data;
    size_t length;
} text;

#define TEXT(literal) ((text){literal, sizeof(literal) - 1})

text text_of(const char *data);
bool text_equal(text one, text other);
bool text_ends(text whole, const char *end);
/* Below zero, 0 or above, by bytes, as the characters' numbers are ordered. */
int text_compare(text one, text other);
/* The number of characters. */
size_t text_characters(text one);

#endif
