/* Reads JSON strictly, as RFC 8259 has it and Python's json with it: no NaN, no key twice, bounded depth. */
#ifndef MTLC_JSON_H
#define MTLC_JSON_H

#include "refusal.h"

#include <stdint.h>

typedef enum json_kind {
    JSON_NULL,
    JSON_FALSE,
    JSON_TRUE,
    JSON_WHOLE,  /* a number without a point or an exponent */
    JSON_NUMBER, /* another number */
    JSON_TEXT,
    JSON_LIST,
    JSON_TABLE
} json_kind;

/* A value. Those of a list or a table hang together by `next`, in the file's order. */
typedef struct json {
    json_kind kind;
    int64_t whole; /* of JSON_WHOLE: beyond 64 bits the nearest that there is */
    double number; /* of both kinds of numbers: infinite where a double cannot hold it */
    text content;  /* of JSON_TEXT. A half of a surrogate pair that stands alone is three bytes, from ED A0 80 on */
    size_t count;  /* of values in it */
    struct json *first, *next;
    text key; /* its own in a table */
} json;

enum { JSON_DEPTH = 400 };

/* The value in `data`. Refuses what is not JSON with MTLC_MANIFEST_DAMAGED. */
json *read_json(check *of, const char *data, size_t bytes);

/* The value of a table's key; NULL where it has none. */
json *json_get(const json *table, const char *key);

#endif
