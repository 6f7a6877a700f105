/* Tells characters of names apart: letters of identifiers, and what is shown. Beyond ASCII by Unicode's tables. */
#ifndef MTLC_CHARACTERS_H
#define MTLC_CHARACTERS_H

#include "arena.h"

/* Bytes of the UTF-8 character at `at`, 0 where it is none (RFC 3629: no surrogates, none beyond 10FFFF). */
size_t utf8_length(const unsigned char *at, size_t left);
bool is_utf8(text of);

/* As Python's str.isidentifier and str.isprintable. */
bool is_identifier(text of);
bool is_printable(text of);

/* The text with capital letters made small as where systems ignore case; in `target`, of 3 times its bytes and 1. */
text folded(text of, char *target);

#endif
