/* Follows the constants of an ONNX file: what is known of names, and tensors that are small. */
#include "work.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

void refuse_work(const work *by, text operator_of, const char *why)
{
    refuse(by->of, MTLC_GRAPH_WORK, "%s: an operator %s %s, which the runtime does not take", by->name,
           shown(operator_of), why);
}

void refuse_damage(const work *by)
{
    refuse(by->of, MTLC_GRAPH_DAMAGED, "%s: not a whole ONNX file", by->name);
}

void add_tensor(work *by, text operator_of, double elements)
{
    if (!(elements >= 0 && elements * ITEM <= MAX_TENSOR_BYTES)) {
        refuse_work(by, operator_of, "makes a tensor that is too large");
    }
    by->made += floor(elements) * ITEM;
    if (by->made > MAX_TENSOR_BYTES) {
        refuse_work(by, operator_of, "makes tensors of more than 1024 MiB with those before it");
    }
}

bool find_constant(const scope *in, text name, constant *found)
{
    for (; in != NULL; in = in->outer) {
        const long place = names_find(&in->known, name);
        if (place != NO_NAME) {
            *found = in->values[place];
            return true;
        }
    }
    return false;
}

void set_constant(const work *by, scope *in, text name, constant value)
{
    const size_t place = names_add(by->of, &in->known, name, NULL);
    if (place >= in->room) {
        constant *grown = take(by->of, in->known.room, sizeof *grown);
        if (in->room > 0) {
            memcpy(grown, in->values, in->room * sizeof *grown);
        }
        in->values = grown;
        in->room = in->known.room;
    }
    in->values[place] = value;
}

static double signed_of(uint64_t value)
{
    return (double)(int64_t)value;
}

void list_numbers(const work *by, const field *part, double *listed, size_t room, size_t *count, bool with_sign)
{
    buffer left = part->content;
    uint64_t value = part->value;
    if (part->kind == 0) {
        if (*count < room) {
            listed[*count] = with_sign ? signed_of(value) : (double)value;
        }
        ++*count;
        return;
    }
    while (left.at < left.end) {
        if (!read_varint(&left, 10, &value)) {
            refuse_damage(by);
        }
        if (*count < room) {
            listed[*count] = with_sign ? signed_of(value) : (double)value;
        }
        ++*count;
    }
}

double product(const double *numbers, size_t count)
{
    double found = 1;
    for (size_t i = 0; i < count; i++) {
        if (numbers[i] == 0) {
            return 0;
        }
        found *= numbers[i];
    }
    return found;
}

/* The product of a tensor's sizes, which are the numbers of the field `number` of `content`. */
static double elements_of(const work *by, const message *known, buffer content, unsigned number)
{
    fields parts = begin_fields(by->of, by->name, known, content);
    double found = 1;
    bool empty = false;
    field part;
    while (next_field(&parts, &part)) {
        if (part.number != number) {
            continue;
        }
        buffer left = part.content;
        uint64_t value = part.value;
        bool more = part.kind == 0 || left.at < left.end;
        while (more) {
            if (part.kind == 2 && !read_varint(&left, 10, &value)) {
                refuse_damage(by);
            }
            empty = empty || value == 0;
            found *= value == 0 ? 1 : (double)value;
            more = part.kind == 2 && left.at < left.end;
        }
    }
    return empty ? 0 : found;
}

void count_sparse(work *by, buffer content)
{
    add_tensor(by, TEXT("Constant"), elements_of(by, &SPARSE, content, 3));
}

/* Where a tensor lies outside the file. check_graph has found that the files hold it. */
typedef struct place {
    bool there, has_length;
    text location;
    int64_t offset, length;
} place;

static int64_t whole_of(text written)
{
    int64_t value = 0;
    for (size_t i = 0; i < written.length && written.data[i] >= '0' && written.data[i] <= '9'; i++) {
        value = value > (INT64_MAX - 9) / 10 ? INT64_MAX : 10 * value + (written.data[i] - '0');
    }
    return value;
}

static void read_place(const work *by, buffer content, place *found)
{
    fields parts = begin_fields(by->of, by->name, &ENTRY, content);
    text entry[3] = {TEXT(""), TEXT(""), TEXT("")};
    field part;
    while (next_field(&parts, &part)) {
        entry[part.number] = field_text(&parts, part.content);
    }
    found->there = true;
    if (text_equal(entry[1], TEXT("location"))) {
        found->location = entry[2];
    } else if (text_equal(entry[1], TEXT("offset"))) {
        found->offset = whole_of(entry[2]);
    } else if (text_equal(entry[1], TEXT("length"))) {
        found->length = whole_of(entry[2]);
        found->has_length = true;
    }
}

/* Reads a small tensor's bytes from a file of the bundle. */
static size_t read_outside(const work *by, const place *from, uint8_t *raw, size_t bytes)
{
    const size_t folder = strlen(by->folder);
    char *path = take(by->of, folder + from->location.length + 2, 1);
    memcpy(path, by->folder, folder);
    path[folder] = '/';
    memcpy(path + folder + 1, from->location.data, from->location.length);
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    const ssize_t found = file < 0 ? -1 : pread(file, raw, bytes, (off_t)from->offset);
    if (file >= 0) {
        close(file);
    }
    if (found < 0) {
        refuse(by->of, MTLC_UNREADABLE, "%s cannot be read (%s)", shown(from->location), strerror(errno));
    }
    return (size_t)found;
}

static double unpacked(const uint8_t *at, uint64_t kind)
{
    uint64_t bits = 0;
    const int bytes = kind == DATA_INT64 ? 8 : 4;
    for (int i = bytes - 1; i >= 0; i--) {
        bits = bits << 8 | at[i];
    }
    if (kind == DATA_FLOAT) {
        const uint32_t small = (uint32_t)bits;
        float value;
        memcpy(&value, &small, sizeof value);
        return (double)value;
    }
    return kind == DATA_INT64 ? signed_of(bits) : (double)(int32_t)(uint32_t)bits;
}

constant read_tensor(work *by, buffer content, text *name)
{
    fields parts = begin_fields(by->of, by->name, &TENSOR, content);
    uint64_t kind = 0;
    buffer raw = {NULL, NULL};
    place outside = {.location = TEXT("")};
    double listed[FOLLOWED];
    size_t listed_count = 0;
    field part;
    *name = TEXT("");
    while (next_field(&parts, &part)) {
        if (part.number == 2) { /* data_type */
            kind = part.value;
        } else if (part.number == 5 || part.number == 7) { /* int32_data, int64_data */
            list_numbers(by, &part, listed, FOLLOWED, &listed_count, true);
        } else if (part.number == 4 && part.kind == 2) { /* float_data */
            if ((part.content.end - part.content.at) % 4 != 0) {
                refuse_damage(by);
            }
            for (const uint8_t *at = part.content.at; at < part.content.end; at += 4, listed_count++) {
                if (listed_count < FOLLOWED) {
                    listed[listed_count] = unpacked(at, DATA_FLOAT);
                }
            }
        } else if (part.number == 8) {
            *name = field_text(&parts, part.content);
        } else if (part.number == 9) { /* raw_data */
            raw = part.content;
        } else if (part.number == 13) { /* external_data */
            read_place(by, part.content, &outside);
        }
    }
    const double count = elements_of(by, &TENSOR, content, 1);
    const double stored = (double)(content.end - content.at) + (double)outside.length;
    if (count > 2 * stored && !(outside.there && !outside.has_length)) {
        refuse_work(by, TEXT("Constant"), "says to have more numbers than are stored");
    }
    constant made = {NULL, 0};
    if ((kind != DATA_INT64 && kind != DATA_INT32 && kind != DATA_FLOAT) || count > FOLLOWED) {
        return made;
    }
    const size_t wanted = (size_t)count, item = kind == DATA_INT64 ? 8 : 4;
    uint8_t read_raw[RAW_BYTES];
    size_t raw_bytes = (size_t)(raw.end - raw.at);
    raw_bytes = raw_bytes > RAW_BYTES ? RAW_BYTES : raw_bytes;
    if (outside.there) {
        raw_bytes = read_outside(by, &outside, read_raw, wanted * item);
    } else if (raw_bytes > 0) {
        memcpy(read_raw, raw.at, raw_bytes);
    }
    if (raw_bytes > 0 && raw_bytes != wanted * item) {
        refuse_damage(by);
    }
    if (raw_bytes == 0 && listed_count != wanted) {
        return made;
    }
    made.count = wanted;
    made.at = take(by->of, wanted + 1, sizeof *made.at);
    for (size_t i = 0; i < wanted; i++) {
        made.at[i] = raw_bytes > 0 ? unpacked(read_raw + i * item, kind) : listed[i];
    }
    return made;
}
