/* Reads arrays and pictures from files, and writes arrays: .npy, raw numbers, PPM and PGM. */
#include "arrays.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *code;
    mtlc_dtype dtype;
} CODES[] = {
    {"f2", MTLC_FLOAT16}, {"f4", MTLC_FLOAT32}, {"f8", MTLC_FLOAT64}, {"i1", MTLC_INT8},
    {"i2", MTLC_INT16},   {"i4", MTLC_INT32},   {"i8", MTLC_INT64},   {"u1", MTLC_UINT8},
    {"u2", MTLC_UINT16},  {"u4", MTLC_UINT32},  {"u8", MTLC_UINT64},  {"b1", MTLC_BOOL},
};
enum { CODE_COUNT = sizeof CODES / sizeof *CODES };

static bool wrong(char why[LINE], const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(why, LINE, format, values);
    va_end(values);
    return false;
}

bool read_whole_file(const char *path, uint8_t **data, size_t *bytes, char why[LINE])
{
    FILE *file = fopen(path, "rb");
    uint8_t *made = NULL;
    size_t room = 0, used = 0, part;
    if (file == NULL) {
        return wrong(why, "%s: %s", path, strerror(errno));
    }
    do {
        if (used == room) {
            room = room == 0 ? 1 << 16 : 2 * room;
            uint8_t *larger = realloc(made, room);
            if (larger == NULL) {
                free(made);
                fclose(file);
                return wrong(why, "%s: no memory left", path);
            }
            made = larger;
        }
        part = fread(made + used, 1, room - used, file);
        used += part;
    } while (part > 0);
    const bool good = !ferror(file);
    fclose(file);
    if (!good) {
        free(made);
        return wrong(why, "%s: %s", path, strerror(errno));
    }
    *data = made;
    *bytes = used;
    return true;
}

/* The bytes of a view's shape; false where they are more than memory. */
static bool count_bytes(mtlc_view *of)
{
    of->bytes = mtlc_dtype_bytes(of->dtype);
    for (int i = 0; i < of->rank; i++) {
        if (of->shape[i] < 0 || (of->shape[i] > 0 && of->bytes > SIZE_MAX / 2 / (uint64_t)of->shape[i])) {
            return false;
        }
        of->bytes *= (size_t)of->shape[i];
    }
    return true;
}

/* The text behind a key of the header, such as "'descr': "; NULL where it is not there. */
static const char *behind(const char *header, const char *key)
{
    const char *found = strstr(header, key);
    return found == NULL ? NULL : found + strlen(key) + strspn(found + strlen(key), " :");
}

static bool read_header(const char *header, mtlc_view *made)
{
    const char *descr = behind(header, "'descr'"), *order = behind(header, "'fortran_order'");
    const char *shape = behind(header, "'shape'");
    if (descr == NULL || order == NULL || shape == NULL || strncmp(order, "False", 5) != 0 || *shape != '(') {
        return false;
    }
    if (descr[0] != '\'' || strchr("<|=", descr[1]) == NULL) {
        return false;
    }
    for (int i = 0; i < CODE_COUNT; i++) {
        if (strncmp(descr + 2, CODES[i].code, 2) == 0 && descr[4] == '\'') {
            made->dtype = CODES[i].dtype;
        }
    }
    for (shape++; made->dtype != 0;) {
        shape += strspn(shape, " ,");
        if (*shape == ')') {
            return true;
        }
        char *end;
        errno = 0;
        const long long size = strtoll(shape, &end, 10);
        if (end == shape || size < 0 || errno != 0 || made->rank == MTLC_MAX_RANK) {
            return false;
        }
        made->shape[made->rank++] = size;
        shape = end;
    }
    return false;
}

bool read_npy(const char *path, array *made, char why[LINE])
{
    uint8_t *data;
    size_t bytes, begin, length;
    memset(made, 0, sizeof *made);
    if (!read_whole_file(path, &data, &bytes, why)) {
        return false;
    }
    bool good = bytes >= 12 && memcmp(data, "\x93NUMPY", 6) == 0 && data[6] >= 1 && data[6] <= 3;
    begin = good && data[6] > 1 ? 12 : 10;
    length = !good ? 0 : data[8] | (size_t)data[9] << 8;
    length |= good && data[6] > 1 ? (size_t)data[10] << 16 | (size_t)data[11] << 24 : 0;
    good = good && length > 0 && length < 65536 && begin + length <= bytes;
    if (good) {
        data[begin + length - 1] = '\0'; /* a line's end stands there */
        good = read_header((char *)data + begin, &made->view) && count_bytes(&made->view) &&
               made->view.bytes == bytes - begin - length;
    }
    if (!good) {
        free(data);
        return wrong(why, "%s: not a whole .npy file in the order of C and in little-endian numbers", path);
    }
    memmove(data, data + begin + length, made->view.bytes);
    made->memory = made->view.data = data;
    return true;
}

bool read_raw(const char *path, const mtlc_tensor_info *as, array *made, char why[LINE])
{
    uint8_t *data;
    size_t bytes, known = mtlc_dtype_bytes(as->dtype);
    int free_at = -1, free_count = 0;
    memset(made, 0, sizeof *made);
    if (!read_whole_file(path, &data, &bytes, why)) {
        return false;
    }
    made->view = (mtlc_view){.dtype = as->dtype, .rank = as->rank};
    for (int i = 0; i < as->rank; i++) {
        made->view.shape[i] = as->shape[i];
        if (as->shape[i] < 0) {
            free_at = i, free_count++;
        } else {
            known *= (size_t)as->shape[i];
        }
    }
    if (free_count == 1 && known > 0) {
        made->view.shape[free_at] = (int64_t)(bytes / known);
    }
    if (free_count > 1 || !count_bytes(&made->view) || made->view.bytes != bytes || bytes == 0) {
        free(data);
        return wrong(why, "%s: its %zu bytes are not those of the input %s: give a .npy file", path, bytes, as->name);
    }
    made->memory = made->view.data = data;
    return true;
}

/* A number of a PNM header, after space and comments; -1 where there is none. */
static int64_t header_number(const uint8_t *data, size_t bytes, size_t *at)
{
    int64_t value = -1;
    while (*at < bytes && (isspace(data[*at]) || data[*at] == '#')) {
        if (data[*at] == '#') {
            while (*at < bytes && data[*at] != '\n') {
                ++*at;
            }
        } else {
            ++*at;
        }
    }
    while (*at < bytes && data[*at] >= '0' && data[*at] <= '9' && value < 100000) {
        value = (value < 0 ? 0 : 10 * value) + (data[(*at)++] - '0');
    }
    return value;
}

bool read_pnm(const char *path, picture *made, char why[LINE])
{
    uint8_t *data;
    size_t bytes, at = 2;
    if (!read_whole_file(path, &data, &bytes, why)) {
        return false;
    }
    const bool color = bytes > 2 && data[1] == '6', grey = bytes > 2 && data[1] == '5';
    const int64_t width = header_number(data, bytes, &at), height = header_number(data, bytes, &at);
    const int64_t most = header_number(data, bytes, &at);
    const int64_t channels = color ? 3 : 1;
    at++; /* one space */
    const bool good = (color || grey) && data[0] == 'P' && width > 0 && height > 0 && most == 255 && width < 100000 &&
                      height < 100000 && at <= bytes && bytes - at == (size_t)(width * height * channels);
    if (!good) {
        free(data);
        return wrong(why, "%s: not a whole binary PPM or PGM of 8 bits", path);
    }
    memmove(data, data + at, bytes - at);
    *made = (picture){height, width, channels, data};
    return true;
}

bool write_npy(const char *path, const mtlc_view *from, char why[LINE])
{
    char header[2048], beside[4096];
    const char *code = "f4";
    int length = 0;
    for (int i = 0; i < CODE_COUNT; i++) {
        code = CODES[i].dtype == from->dtype ? CODES[i].code : code;
    }
    length += snprintf(header, sizeof header, "{'descr': '%c%s', 'fortran_order': False, 'shape': (",
                       mtlc_dtype_bytes(from->dtype) == 1 ? '|' : '<', code);
    for (int i = 0; i < from->rank; i++) {
        length += snprintf(header + length, sizeof header - (size_t)length, "%lld,", (long long)from->shape[i]);
    }
    length += snprintf(header + length, sizeof header - (size_t)length, "), }");
    while ((10 + length + 1) % 64 != 0) {
        header[length++] = ' ';
    }
    header[length++] = '\n';
    if (snprintf(beside, sizeof beside, "%s.%ld.tmp", path, (long)getpid()) >= (int)sizeof beside) {
        return wrong(why, "%s: the path is too long", path);
    }
    FILE *file = fopen(beside, "wb");
    if (file == NULL) {
        return wrong(why, "%s: %s", path, strerror(errno));
    }
    const uint8_t begin[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, (uint8_t)length, (uint8_t)(length >> 8)};
    bool good = fwrite(begin, 1, sizeof begin, file) == sizeof begin;
    good = fwrite(header, 1, (size_t)length, file) == (size_t)length && good;
    good = fwrite(from->data, 1, from->bytes, file) == from->bytes && good;
    good = fclose(file) == 0 && good;
    good = good && rename(beside, path) == 0;
    if (!good) {
        wrong(why, "%s: %s", path, strerror(errno));
        remove(beside);
    }
    return good;
}
