/* Reads single values of a manifest, each with the key that an error names. */
#include "manifest_sections.h"

#include "characters.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

key key_named(const key *inside, text name)
{
    return (key){inside, name, NO_NAME};
}

key key_placed(const key *inside, size_t place)
{
    return (key){inside, {"", 0}, (long)place};
}

static size_t write_key(const key *at, char *target, size_t room)
{
    size_t used = at->inside == NULL ? 0 : write_key(at->inside, target, room);
    if (used + 1 >= room) {
        return used;
    }
    int added;
    if (at->place != NO_NAME) {
        added = snprintf(target + used, room - used, "[%ld]", at->place);
    } else {
        added = snprintf(target + used, room - used, "%s%.60s", at->inside == NULL ? "" : ".", at->name.data);
    }
    return added < 0 ? used : used + (size_t)added < room ? used + (size_t)added : room - 1;
}

void refuse_key(check *of, mtlc_code code, const key *at, const char *format, ...)
{
    char name[256] = "", why[256];
    va_list values;
    va_start(values, format);
    vsnprintf(why, sizeof why, format, values);
    va_end(values);
    write_key(at, name, sizeof name);
    refuse(of, code, "manifest.json: %s %s", name, why);
}

json *need(check *of, const json *table, const char *name, const key *inside)
{
    json *found = json_get(table, name);
    if (found == NULL) {
        const key at = key_named(inside, text_of(name));
        refuse_key(of, MTLC_KEY_MISSING, &at, "is missing");
    }
    return found;
}

json *allow(const json *table, const char *name)
{
    json *found = json_get(table, name);
    return found == NULL || found->kind == JSON_NULL ? NULL : found;
}

/* Names are in the key of all that is inside them, and are given to the engine as texts that end at a zero byte. */
static void check_text(check *of, text content, const key *at)
{
    if (text_characters(content) > MAX_NAME) {
        refuse_key(of, MTLC_LIMIT, at, "has more than the %d characters of a name", MAX_NAME);
    }
    for (size_t i = 0; i < content.length; i++) {
        const unsigned char *c = (const unsigned char *)content.data + i;
        if (*c == 0 || (*c == 0xED && c[1] > 0x9F)) {
            refuse_key(of, MTLC_KEY_VALUE, at, "has a zero or half a character in a text");
        }
    }
}

void be_known_keys(check *of, const json *value, const key *at, const char *const *known, mtlc_code code)
{
    for (const json *one = value->first; one != NULL; one = one->next) {
        size_t i = 0;
        while (known[i] != NULL && !text_equal(one->key, text_of(known[i]))) {
            i++;
        }
        if (known[i] == NULL) {
            refuse_key(of, code, at, "has an unknown key %s", shown(one->key));
        }
    }
}

void be_any_table(check *of, const json *value, const key *at)
{
    if (value->kind != JSON_TABLE) {
        refuse_key(of, MTLC_KEY_TYPE, at, "must be a table");
    }
}

void be_table(check *of, const json *value, const key *at)
{
    be_any_table(of, value, at);
    for (const json *one = value->first; one != NULL; one = one->next) {
        check_text(of, one->key, at);
    }
}

void be_list(check *of, const json *value, const key *at, size_t most)
{
    if (value->kind != JSON_LIST) {
        refuse_key(of, MTLC_KEY_TYPE, at, "must be a list");
    }
    if (value->count > most) {
        refuse_key(of, MTLC_LIMIT, at, "has %zu entries, more than %zu", value->count, most);
    }
}

text read_name(check *of, const json *value, const key *at)
{
    if (value->kind != JSON_TEXT) {
        refuse_key(of, MTLC_KEY_TYPE, at, "must be text");
    }
    check_text(of, value->content, at);
    return value->content;
}

void check_file_name(check *of, text name, const key *at)
{
    static const char *const kept[] = {"", ".", "..", "manifest.json"};
    bool good = is_printable(name);
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        good = good && !text_equal(name, text_of(kept[i]));
    }
    for (size_t i = 0; i < name.length; i++) {
        good = good && name.data[i] != '\0' && strchr("/\\:\"", name.data[i]) == NULL;
    }
    if (!good) {
        refuse_key(of, MTLC_FILE_NAME, at, "%s is not a plain file name inside the bundle", shown(name));
    }
}

text read_file_name(check *of, const json *value, const key *at)
{
    const text name = read_name(of, value, at);
    check_file_name(of, name, at);
    return name;
}

text read_choice(check *of, const json *value, const key *at, const char *const *known)
{
    for (; *known != NULL; known++) {
        if (value->kind == JSON_TEXT && text_equal(value->content, text_of(*known))) {
            return value->content;
        }
    }
    refuse_key(of, MTLC_KEY_VALUE, at, "is none of the values that it may have");
}

int64_t read_whole(check *of, const json *value, const key *at)
{
    if (value->kind != JSON_WHOLE) {
        refuse_key(of, MTLC_KEY_TYPE, at, "must be a whole number");
    }
    if (value->whole < 0 || value->whole >= (int64_t)1 << 62) {
        refuse_key(of, MTLC_KEY_VALUE, at, "must be a whole number, zero or more");
    }
    return value->whole;
}

double read_finite(check *of, const json *value, const key *at)
{
    if (value->kind != JSON_WHOLE && value->kind != JSON_NUMBER) {
        refuse_key(of, MTLC_KEY_TYPE, at, "must be a number");
    }
    if (!isfinite(value->number)) {
        refuse_key(of, MTLC_KEY_VALUE, at, "must be a finite number");
    }
    return value->number;
}

bool read_truth(check *of, const json *value, const key *at)
{
    if (value->kind != JSON_TRUE && value->kind != JSON_FALSE) {
        refuse_key(of, MTLC_KEY_TYPE, at, "must be true or false");
    }
    return value->kind == JSON_TRUE;
}

double read_width(check *of, const json *value, const key *at)
{
    const double width = read_finite(of, value, at);
    if (!(width > 0 && width <= 1)) {
        refuse_key(of, MTLC_KEY_VALUE, at, "must be above 0 and at most 1");
    }
    return width;
}

texts read_names(check *of, const json *value, const key *at)
{
    be_list(of, value, at, SIZE_MAX);
    texts made = {take(of, value->count, sizeof *made.at), 0};
    for (const json *one = value->first; one != NULL; one = one->next) {
        const key here = key_placed(at, made.count);
        made.at[made.count++] = read_name(of, one, &here);
    }
    return made;
}

numbers read_numbers(check *of, const json *value, const key *at)
{
    be_table(of, value, at);
    numbers made = {take(of, value->count, sizeof *made.names), take(of, value->count, sizeof *made.at), 0};
    for (const json *one = value->first; one != NULL; one = one->next) {
        const key here = key_named(at, one->key);
        made.names[made.count] = one->key;
        made.at[made.count++] = read_finite(of, one, &here);
    }
    return made;
}

shape read_shape(check *of, const json *value, const key *at)
{
    shape made = {0};
    be_list(of, value, at, SIZE_MAX);
    bool empty = false, large = false;
    int64_t elements = 1;
    size_t place = 0;
    for (const json *one = value->first; one != NULL; one = one->next, place++) {
        const key here = key_placed(at, place);
        int64_t size = -1;
        text name = {NULL, 0};
        if (one->kind == JSON_TEXT && one->content.length > 0) {
            name = read_name(of, one, &here);
        } else if (one->kind == JSON_WHOLE && one->whole >= 0) {
            size = one->whole;
            empty = empty || size == 0;
            large = large || (size > 0 && elements > MAX_ELEMENTS / size);
            elements = large ? MAX_ELEMENTS : elements * (size > 0 ? size : 1);
        } else {
            refuse_key(of, MTLC_KEY_VALUE, &here, "must be a size or a name");
        }
        if (place < MTLC_MAX_RANK) {
            made.at[place] = size;
            made.named[place] = name;
        }
    }
    if (value->count > MTLC_MAX_RANK) {
        refuse_key(of, MTLC_LIMIT, at, "has %zu dimensions, more than %d", value->count, MTLC_MAX_RANK);
    }
    if (large && !empty) {
        refuse_key(of, MTLC_LIMIT, at, "has more than %lld elements", (long long)MAX_ELEMENTS);
    }
    made.rank = (int)value->count;
    return made;
}

mtlc_dtype read_dtype(check *of, const json *value, const key *at)
{
    const char *known[MTLC_BOOL + 1] = {NULL};
    for (int i = 0; i < MTLC_BOOL; i++) {
        known[i] = mtlc_dtype_name((mtlc_dtype)(i + 1));
    }
    const text chosen = read_choice(of, value, at, known);
    int found = 0;
    while (!text_equal(chosen, text_of(known[found]))) {
        found++;
    }
    return (mtlc_dtype)(found + 1);
}

size_t read_list(check *of, const json *value, const key *at, size_t most, size_t size, void *array_pointer,
                 read_entry *read)
{
    be_list(of, value, at, most);
    char *made = take(of, value->count, size);
    size_t count = 0;
    for (const json *one = value->first; one != NULL; one = one->next, count++) {
        const key here = key_placed(at, count);
        read(of, one, &here, made + count * size);
    }
    memcpy(array_pointer, &made, sizeof made);
    return count;
}

size_t read_table(check *of, const json *value, const key *at, size_t size, void *array_pointer, read_entry *read)
{
    size_t count = 0;
    char *made = NULL;
    if (value != NULL) {
        be_table(of, value, at);
        made = take(of, value->count, size);
        for (const json *one = value->first; one != NULL; one = one->next, count++) {
            const key here = key_named(at, one->key);
            read(of, one, &here, made + count * size);
        }
    }
    memcpy(array_pointer, &made, sizeof made);
    return count;
}
