/* Reads the protobuf wire format strictly: what two parsers could read in two ways is refused. */
#include "wire_format.h"

#include "characters.h"

enum { TAG_BYTES = 5, LENGTH_BYTES = 5, NUMBER_BYTES = 10 };

bool read_varint(buffer *from, int most, uint64_t *value)
{
    *value = 0;
    for (int place = 0; place < most && from->at < from->end; place++) {
        const uint8_t byte = *from->at++;
        *value |= (uint64_t)(byte & 0x7F) << 7 * place;
        if (byte < 0x80) {
            return true;
        }
    }
    return false;
}

fields begin_fields(check *of, const char *file, const message *known, buffer content)
{
    return (fields){of, file, known, content, 0};
}

static void NEVER_RETURNS damaged(fields *in)
{
    refuse(in->of, MTLC_GRAPH_DAMAGED, "%s: not a whole ONNX file", in->file);
}

bool next_field(fields *in, field *found)
{
    uint64_t tag, length;
    if (in->left.at >= in->left.end) {
        return false;
    }
    if (!read_varint(&in->left, TAG_BYTES, &tag)) {
        damaged(in);
    }
    const uint64_t number = tag >> 3;
    const unsigned kind = tag & 7;
    const unsigned allowed = number < MOST_FIELDS ? in->known->fields[number] : 0;
    if (tag >> 32 || !(allowed >> kind & 1)) {
        refuse(in->of, MTLC_GRAPH_DAMAGED, "%s: not a whole ONNX file: it has field %llu of wire type %u", in->file,
               (unsigned long long)number, kind);
    }
    if (!(allowed & WIRE_REPEATED)) {
        if (in->seen >> number & 1) {
            refuse(in->of, MTLC_GRAPH_DAMAGED, "%s: not a whole ONNX file: it has field %llu twice", in->file,
                   (unsigned long long)number);
        }
        in->seen |= (uint32_t)1 << number;
    }
    *found = (field){(unsigned)number, kind, {in->left.at, in->left.at}, 0};
    if (kind == 2) {
        if (!read_varint(&in->left, LENGTH_BYTES, &length) || length > (uint64_t)(in->left.end - in->left.at)) {
            damaged(in);
        }
        found->content = (buffer){in->left.at, in->left.at + length};
        in->left.at += length;
    } else if (kind == 0) {
        if (!read_varint(&in->left, NUMBER_BYTES, &found->value)) {
            damaged(in);
        }
    } else {
        const size_t bytes = kind == 1 ? 8 : 4;
        if ((size_t)(in->left.end - in->left.at) < bytes) {
            damaged(in);
        }
        in->left.at += bytes;
    }
    return true;
}

text field_text(fields *in, buffer content)
{
    const text made = {(const char *)content.at, (size_t)(content.end - content.at)};
    if (!is_utf8(made)) {
        damaged(in);
    }
    return made;
}
