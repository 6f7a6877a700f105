/* Reads the protobuf wire format strictly: what two parsers could read in two ways is refused.
 *
 * https://protobuf.dev/programming-guides/encoding; the Python runtime's wire_format.py says why. */
#ifndef MTLC_WIRE_FORMAT_H
#define MTLC_WIRE_FORMAT_H

#include "refusal.h"

#include <stdint.h>

/* Bits of a field's wire types; a repeated number may be packed, which adds WIRE_BYTES. */
enum { WIRE_VARINT = 1 << 0, WIRE_64 = 1 << 1, WIRE_BYTES = 1 << 2, WIRE_32 = 1 << 5, WIRE_REPEATED = 1 << 8 };
enum { MOST_FIELDS = 32 };

/* The wire types of a message's fields by number, 0 where it has none. */
typedef struct message {
    uint16_t fields[MOST_FIELDS];
} message;

typedef struct buffer {
    const uint8_t *at, *end;
} buffer;

/* A field: its number, its wire type, and its content or its value. */
typedef struct field {
    unsigned number, kind;
    buffer content;  /* of wire type 2 */
    uint64_t value; /* of wire type 0 */
} field;

/* A message that is being read. `file` is for the refusal. */
typedef struct fields {
    check *of;
    const char *file;
    const message *known;
    buffer left;
    uint32_t seen;
} fields;

fields begin_fields(check *of, const char *file, const message *known, buffer content);
/* The next field; false at the end. Refuses with MTLC_GRAPH_DAMAGED. */
bool next_field(fields *in, field *found);

/* A number of at most `most` bytes; false where it is cut off or longer. */
bool read_varint(buffer *from, int most, uint64_t *value);

/* The content as a text, which must be UTF-8. No zero byte follows it. */
text field_text(fields *in, buffer content);

#endif
