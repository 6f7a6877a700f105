/* Ends a check or a call with a code and one line. */
#include "refusal.h"

#include "characters.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const char *const NAMES[MTLC_CODES] = {
    "ok", "not-found", "unreadable", "not-a-bundle", "manifest-size", "manifest-damaged", "manifest-schema",
    "key-missing", "key-unknown", "key-type", "key-value", "limit", "file-name", "twice", "reference", "flow", "widths",
    "experts", "postprocess", "file-missing", "file-kind", "file-size", "file-digest", "file-changed", "graph-damaged",
    "graph-content", "graph-operator", "graph-weights", "graph-work", "zip-damaged", "zip-entry", "argument", "task",
    "configuration", "budget",
    "preference", "input", "memory", "engine", "processor", "unsupported", "load", "run",
};

const char *mtlc_code_name(mtlc_code code)
{
    return (unsigned)code < MTLC_CODES ? NAMES[code] : NULL;
}

const char *mtlc_version(void)
{
    return MTLC_VERSION;
}

/* Names in it may come from a stranger's file: what a terminal would act on, or not show, becomes '?'. */
static void write_line(mtlc_error *error, mtlc_code code, const char *format, va_list values)
{
    char whole[sizeof error->message];
    char *to = error->message;
    const int wanted = vsnprintf(whole, sizeof whole, format, values);
    const size_t left = wanted < 0 ? 0 : (size_t)wanted < sizeof whole ? (size_t)wanted : sizeof whole - 1;
    for (size_t i = 0, length; i < left; i += length) {
        length = utf8_length((const unsigned char *)whole + i, left - i);
        if (length > 0 && is_printable((text){whole + i, length})) {
            memcpy(to, whole + i, length);
            to += length;
        } else {
            *to++ = '?';
            length = length > 0 ? length : 1;
        }
    }
    *to = '\0';
    error->code = code;
}

mtlc_code fail(mtlc_error *error, mtlc_code code, const char *format, ...)
{
    if (error != NULL) {
        va_list values;
        va_start(values, format);
        write_line(error, code, format, values);
        va_end(values);
    }
    return code;
}

void refuse(check *of, mtlc_code code, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    write_line(&of->error, code, format, values);
    va_end(values);
    longjmp(of->end, 1);
}

void *take(check *of, size_t count, size_t size)
{
    void *found = count > SIZE_MAX / 2 / (size ? size : 1) ? NULL : arena_take(of->memory, count * size);
    if (found == NULL) {
        refuse(of, MTLC_MEMORY, "no memory left for %zu times %zu bytes", count, size);
    }
    return found;
}

const char *shown(text of)
{
    enum { RESULTS = 8, LONGEST = 60 };
    static __thread char results[RESULTS][LONGEST * 4 + 8];
    static __thread int turn;
    char *target = results[turn++ % RESULTS], *end = target;
    size_t characters = 0;
    *end++ = '\'';
    for (size_t i = 0; i < of.length; i++) {
        characters += ((unsigned char)of.data[i] & 0xC0) != 0x80;
        if (characters > LONGEST) {
            end = memcpy(end, "...", 3), end += 3;
            break;
        }
        *end++ = of.data[i] == '\0' ? '?' : of.data[i];
    }
    *end++ = '\'';
    *end = '\0';
    return target;
}
