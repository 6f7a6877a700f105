/* Reads JSON strictly, as RFC 8259 has it and Python's json with it: no NaN, no key twice, bounded depth. */
#include "json.h"

#include "characters.h"
#include "decimal.h"

#include <stdlib.h>
#include <string.h>

typedef struct reader {
    check *of;
    const char *at, *begin, *end;
} reader;

static void NEVER_RETURNS damaged(reader *in, const char *why)
{
    const size_t place = (size_t)(in->at - in->begin);
    refuse(in->of, MTLC_MANIFEST_DAMAGED, "manifest.json is damaged: %s at byte %zu", why, place);
}

static void skip_space(reader *in)
{
    while (in->at < in->end && (*in->at == ' ' || *in->at == '\t' || *in->at == '\n' || *in->at == '\r')) {
        in->at++;
    }
}

static unsigned hexadecimal(reader *in)
{
    unsigned value = 0;
    for (int i = 0; i < 4; i++, in->at++) {
        const char c = in->at < in->end ? *in->at : '\0';
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0) {
            damaged(in, "no four hexadecimal digits");
        }
        value = value << 4 | (unsigned)digit;
    }
    return value;
}

static char *put_utf8(char *to, unsigned c)
{
    if (c < 0x80) {
        *to++ = (char)c;
    } else if (c < 0x800) {
        *to++ = (char)(0xC0 | c >> 6);
        *to++ = (char)(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        *to++ = (char)(0xE0 | c >> 12);
        *to++ = (char)(0x80 | (c >> 6 & 0x3F));
        *to++ = (char)(0x80 | (c & 0x3F));
    } else {
        *to++ = (char)(0xF0 | c >> 18);
        *to++ = (char)(0x80 | (c >> 12 & 0x3F));
        *to++ = (char)(0x80 | (c >> 6 & 0x3F));
        *to++ = (char)(0x80 | (c & 0x3F));
    }
    return to;
}

static char *put_escape(reader *in, char *to)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char name = in->at < in->end ? *in->at : '\0';
    const char *known = name == '\0' ? NULL : strchr(names, name);
    if (known != NULL) {
        in->at++;
        *to++ = values[known - names];
        return to;
    }
    if (name != 'u') {
        damaged(in, "an escape that is none");
    }
    in->at++;
    unsigned c = hexadecimal(in);
    if (c >= 0xD800 && c < 0xDC00 && in->end - in->at >= 6 && in->at[0] == '\\' && in->at[1] == 'u') {
        const char *before = in->at;
        in->at += 2;
        const unsigned low = hexadecimal(in);
        if (low >= 0xDC00 && low < 0xE000) {
            c = 0x10000 + ((c & 0x3FF) << 10 | (low & 0x3FF));
        } else {
            in->at = before;
        }
    }
    return put_utf8(to, c);
}

static text read_text(reader *in)
{
    const char *close = ++in->at;
    while (close < in->end && *close != '"') {
        close += *close == '\\' && close + 1 < in->end ? 2 : 1;
    }
    if (close >= in->end) {
        damaged(in, "a text without an end");
    }
    /* What escapes stand for is never longer than they are. */
    char *target = take(in->of, (size_t)(close - in->at) + 1, 1), *to = target;
    while (in->at < close) {
        const size_t length = utf8_length((const unsigned char *)in->at, (size_t)(in->end - in->at));
        if (length == 0) {
            damaged(in, "not UTF-8");
        }
        if ((unsigned char)*in->at < 0x20) {
            damaged(in, "a control character in a text");
        }
        if (*in->at == '\\') {
            in->at++;
            to = put_escape(in, to);
            continue;
        }
        memcpy(to, in->at, length);
        to += length;
        in->at += length;
    }
    in->at = close + 1;
    *to = '\0';
    return (text){target, (size_t)(to - target)};
}

static bool digits(reader *in)
{
    const char *begin = in->at;
    while (in->at < in->end && *in->at >= '0' && *in->at <= '9') {
        in->at++;
    }
    return in->at > begin;
}

static void read_number(reader *in, json *into)
{
    enum { MOST_DIGITS = 4300 }; /* Python's int takes no more */
    const char *begin = in->at;
    const bool negative = *in->at == '-';
    in->at += negative;
    const char *first = in->at;
    if (in->at < in->end && *in->at == '0') {
        in->at++;
    } else if (!digits(in)) {
        damaged(in, "no value");
    }
    const char *whole_end = in->at;
    bool whole = true;
    if (in->at < in->end && *in->at == '.') {
        in->at++;
        if (!digits(in)) {
            damaged(in, "a point without digits");
        }
        whole = false;
    }
    if (in->at < in->end && (*in->at == 'e' || *in->at == 'E')) {
        in->at++;
        if (in->at < in->end && (*in->at == '+' || *in->at == '-')) {
            in->at++;
        }
        if (!digits(in)) {
            damaged(in, "an exponent without digits");
        }
        whole = false;
    }
    into->kind = whole ? JSON_WHOLE : JSON_NUMBER;
    if (whole && whole_end - first > MOST_DIGITS) {
        damaged(in, "a number of more than 4300 digits");
    }
    if (!read_decimal(begin, (size_t)(in->at - begin), &into->number)) {
        refuse(in->of, MTLC_MEMORY, "no memory left for a number");
    }
    for (const char *c = first; whole && c < whole_end; c++) {
        const int digit = *c - '0';
        if (into->whole > (INT64_MAX - digit) / 10) {
            into->whole = INT64_MAX;
            break;
        }
        into->whole = 10 * into->whole + digit;
    }
    if (negative) {
        into->whole = -into->whole;
    }
}

static int by_key(const void *one, const void *other)
{
    return text_compare((*(json *const *)one)->key, (*(json *const *)other)->key);
}

static void refuse_twice(reader *in, const json *table)
{
    json **sorted = take(in->of, table->count, sizeof *sorted);
    size_t count = 0;
    for (json *one = table->first; one != NULL; one = one->next) {
        sorted[count++] = one;
    }
    qsort(sorted, count, sizeof *sorted, by_key);
    for (size_t i = 1; i < count; i++) {
        if (text_equal(sorted[i - 1]->key, sorted[i]->key)) {
            damaged(in, "a key is given twice");
        }
    }
}

static json *read_value(reader *in, int depth);

static void read_inside(reader *in, json *into, char close, int depth)
{
    json **last = &into->first;
    in->at++;
    skip_space(in);
    if (in->at < in->end && *in->at == close) {
        in->at++;
        return;
    }
    for (;;) {
        text key = {"", 0};
        if (close == '}') {
            skip_space(in);
            if (in->at >= in->end || *in->at != '"') {
                damaged(in, "no key");
            }
            key = read_text(in);
            skip_space(in);
            if (in->at >= in->end || *in->at != ':') {
                damaged(in, "no colon");
            }
            in->at++;
        }
        *last = read_value(in, depth + 1);
        (*last)->key = key;
        last = &(*last)->next;
        into->count++;
        skip_space(in);
        if (in->at < in->end && *in->at == close) {
            in->at++;
            return;
        }
        if (in->at >= in->end || *in->at != ',') {
            damaged(in, "neither a comma nor an end");
        }
        in->at++;
    }
}

static bool is_word(reader *in, const char *word)
{
    const size_t length = strlen(word);
    if ((size_t)(in->end - in->at) < length || memcmp(in->at, word, length) != 0) {
        return false;
    }
    in->at += length;
    return true;
}

static json *read_value(reader *in, int depth)
{
    json *made = take(in->of, 1, sizeof *made);
    skip_space(in);
    if (depth > JSON_DEPTH) {
        damaged(in, "too deep");
    }
    if (in->at >= in->end) {
        damaged(in, "no value");
    }
    if (*in->at == '{' || *in->at == '[') {
        made->kind = *in->at == '{' ? JSON_TABLE : JSON_LIST;
        read_inside(in, made, *in->at == '{' ? '}' : ']', depth);
        if (made->kind == JSON_TABLE && made->count > 1) {
            refuse_twice(in, made);
        }
    } else if (*in->at == '"') {
        made->kind = JSON_TEXT;
        made->content = read_text(in);
    } else if (is_word(in, "true")) {
        made->kind = JSON_TRUE;
    } else if (is_word(in, "false")) {
        made->kind = JSON_FALSE;
    } else if (!is_word(in, "null")) {
        read_number(in, made);
    }
    return made;
}

json *read_json(check *of, const char *data, size_t bytes)
{
    reader in = {of, data, data, data + bytes};
    json *made = read_value(&in, 0);
    skip_space(&in);
    if (in.at != in.end) {
        damaged(&in, "something after the value");
    }
    return made;
}

json *json_get(const json *table, const char *key)
{
    const text wanted = text_of(key);
    for (json *one = table->first; one != NULL; one = one->next) {
        if (text_equal(one->key, wanted)) {
            return one;
        }
    }
    return NULL;
}
