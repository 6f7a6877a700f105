/* Damages manifests, ONNX files and zips at random and reads them: a run that ends says how many it tried.
 *
 *     mtlc-fuzz manifest|graph|zip FILE [--runs N] [--seconds S] [--seed K]
 *
 * FILE is a good one. Build with -DMTLC_FUZZ=ON -DMTLC_SANITIZE=ON: the sanitizers end the process at the first fault.
 * With clang, -fsanitize=fuzzer and -DMTLC_LIBFUZZER the same checks are libFuzzer's target. */
#include "archive.h"
#include "graph_check.h"
#include "manifest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct trial {
    check of;
    arena memory;
    const uint8_t *data;
    size_t bytes;
    const char *folder;
} trial;

static void read_one_manifest(trial *by)
{
    read_manifest(&by->of, (const char *)by->data, by->bytes);
}

static void read_one_graph(trial *by)
{
    manifest in = {0};
    file_info weights = {.name = TEXT("weights.bin"), .bytes = 4800};
    in.files = &weights;
    in.file_count = 1;
    names_add(&by->of, &in.file_names, weights.name, NULL);
    const buffer content = {by->data, by->data + by->bytes};
    check_graph(&by->of, "fuzz.onnx", content, &in);
    check_work(&by->of, "fuzz.onnx", content, by->folder);
}

/* All entries are unpacked, each into memory of just its size. */
static void read_one_zip(trial *by)
{
    archive in = {0};
    read_archive(&by->of, &in, by->data, (int64_t)by->bytes);
    for (size_t i = 0; i < in.count; i++) {
        const size_t bytes = (size_t)in.entries[i].bytes;
        uint8_t *target = malloc(bytes > 0 ? bytes : 1);
        const bool good = target != NULL && unpack_entry(&in, &in.entries[i], target);
        free(target);
        if (!good) {
            refuse(&by->of, MTLC_ZIP_DAMAGED, "an entry cannot be unpacked");
        }
    }
}

/* Whether the data was taken; the memory of the trial is freed. */
static bool try_once(void (*read)(trial *), trial *by)
{
    if (setjmp(by->of.end) != 0) {
        return false;
    }
    read(by);
    return true;
}

static mtlc_code run_trial(void (*read)(trial *), const uint8_t *data, size_t bytes, const char *folder)
{
    trial by = {.data = data, .bytes = bytes, .folder = folder};
    by.of.memory = &by.memory;
    const bool taken = try_once(read, &by);
    arena_free(&by.memory);
    return taken ? MTLC_OK : by.of.error.code;
}

#ifdef MTLC_LIBFUZZER

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    run_trial(read_one_manifest, data, bytes, "/nonexistent");
    run_trial(read_one_graph, data, bytes, "/nonexistent");
    run_trial(read_one_zip, data, bytes, "/nonexistent");
    return 0;
}

#else

static uint64_t state;

static uint64_t draw(uint64_t below)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17; /* xorshift64 */
    return below == 0 ? 0 : state % below;
}

static const char *const TOKENS[] = {
    "{", "}", "[", "]", ",", ":", "\"", "\\u0000", "\\ud800", "\\", "null", "true", "false", "0", "-1", "1e400", "1.5",
    "4611686018427387904", "99999999999999999999999", "\"x\"", "\"trunk\"", "\"weights.bin\"", "\"a/../b\"", "[]", "{}",
    "\"batch\"", "\xff", "\xc3\xbc", "\"decoders\"", "\"encoder\"", "\"postprocess\"", "\"experts\"",
};

/* Puts `with` in place of `length` bytes at `at`; gives the new size. */
static size_t replace(uint8_t *data, size_t bytes, size_t room, size_t at, size_t length, const void *with, size_t size)
{
    if (bytes - length + size > room) {
        return bytes;
    }
    memmove(data + at + size, data + at + length, bytes - at - length);
    memcpy(data + at, with, size);
    return bytes - length + size;
}

/* The text in quotes at or behind `from`; false where there is none. */
static bool find_quoted(const uint8_t *data, size_t bytes, size_t from, size_t *at, size_t *length)
{
    const uint8_t *begin = from < bytes ? memchr(data + from, '"', bytes - from) : NULL;
    const uint8_t *end = begin == NULL ? NULL : memchr(begin + 1, '"', bytes - (size_t)(begin - data) - 1);
    if (end == NULL) {
        return false;
    }
    *at = (size_t)(begin - data);
    *length = (size_t)(end - begin) + 1;
    return true;
}

/* One change. Of texts most put a text or a digit in another's place, so that JSON often stays JSON. */
static size_t damage(uint8_t *data, size_t bytes, size_t room, bool texts)
{
    uint8_t copied[256];
    size_t at = draw(bytes), other = draw(bytes), length, other_length;
    if (bytes == 0) {
        return bytes;
    }
    switch (texts && draw(4) > 0 ? 5 + draw(2) : draw(7)) {
    case 0:
        data[at] ^= (uint8_t)(1 << draw(8));
        return bytes;
    case 1:
        data[at] = (uint8_t)draw(256);
        return bytes;
    case 2: /* forget some */
        length = 1 + draw(bytes - at < 64 ? bytes - at : 64);
        return replace(data, bytes, room, at, length > bytes - at ? bytes - at : length, "", 0);
    case 3: { /* a token */
        const char *token = TOKENS[draw(sizeof TOKENS / sizeof *TOKENS)];
        return replace(data, bytes, room, at, draw(2) ? 0 : 1, token, strlen(token));
    }
    case 4: /* a piece of another place */
        length = 1 + draw(sizeof copied - 1);
        length = length > bytes - other ? bytes - other : length;
        memcpy(copied, data + other, length);
        return replace(data, bytes, room, at, 0, copied, length);
    case 5: /* a text in another's place */
        if (find_quoted(data, bytes, at, &at, &length) && find_quoted(data, bytes, other, &other, &other_length) &&
            other_length < sizeof copied) {
            memcpy(copied, data + other, other_length);
            return replace(data, bytes, room, at, length, copied, other_length);
        }
        return bytes;
    default: /* a digit */
        for (size_t i = at; i < bytes; i++) {
            if (data[i] >= '0' && data[i] <= '9') {
                data[i] = (uint8_t)('0' + draw(10));
                break;
            }
        }
        return bytes;
    }
}

static uint8_t *read_seed(const char *path, size_t *bytes)
{
    enum { MOST = 1 << 20 };
    FILE *file = fopen(path, "rb");
    uint8_t *made = file == NULL ? NULL : malloc(MOST);
    *bytes = made == NULL ? 0 : fread(made, 1, MOST, file);
    if (file != NULL) {
        fclose(file);
    }
    return made;
}

typedef struct target {
    const char *name;
    void (*read)(trial *);
    bool texts;
} target;

static const target TARGETS[] = {
    {"manifest", read_one_manifest, true}, {"graph", read_one_graph, false}, {"zip", read_one_zip, false}};

static const target *find_target(const char *name)
{
    for (size_t i = 0; i < sizeof TARGETS / sizeof *TARGETS; i++) {
        if (strcmp(TARGETS[i].name, name) == 0) {
            return &TARGETS[i];
        }
    }
    return NULL;
}

int main(int count, char **arguments)
{
    uint64_t runs = UINT64_MAX, seed = 1, done = 0, codes[MTLC_CODES] = {0};
    double seconds = 10;
    for (int i = 3; i + 1 < count; i += 2) {
        runs = strcmp(arguments[i], "--runs") == 0 ? strtoull(arguments[i + 1], NULL, 10) : runs;
        seconds = strcmp(arguments[i], "--seconds") == 0 ? strtod(arguments[i + 1], NULL) : seconds;
        seed = strcmp(arguments[i], "--seed") == 0 ? strtoull(arguments[i + 1], NULL, 10) : seed;
    }
    size_t bytes;
    const target *what = count > 2 ? find_target(arguments[1]) : NULL;
    uint8_t *whole = what != NULL ? read_seed(arguments[2], &bytes) : NULL;
    if (whole == NULL) {
        fputs("mtlc-fuzz manifest|graph|zip FILE [--runs N] [--seconds S] [--seed K]\n", stderr);
        return 2;
    }
    char folder[4096];
    const char *slash = strrchr(arguments[2], '/');
    const int length = slash == NULL ? 1 : (int)(slash - arguments[2]);
    snprintf(folder, sizeof folder, "%.*s", length, slash == NULL ? "." : arguments[2]);
    const size_t room = 2 * bytes + 1024;
    const time_t begun = time(NULL);
    state = seed * 0x9E3779B97F4A7C15u | 1;
    for (; done < runs && (done % 256 != 0 || difftime(time(NULL), begun) < seconds); done++) {
        /* Of just the size, so that the first byte behind it is not ours. */
        uint8_t *data = malloc(room), *tight;
        size_t size = bytes;
        memcpy(data, whole, bytes);
        for (uint64_t i = draw(4) + (done > 0); i > 0; i--) {
            size = damage(data, size, room, what->texts);
        }
        tight = malloc(size > 0 ? size : 1);
        memcpy(tight, data, size);
        codes[run_trial(what->read, tight, size, folder)]++;
        free(tight);
        free(data);
    }
    printf("{\"executions\": %llu", (unsigned long long)done);
    for (int i = 0; i < MTLC_CODES; i++) {
        if (codes[i] > 0) {
            printf(", \"%s\": %llu", mtlc_code_name((mtlc_code)i), (unsigned long long)codes[i]);
        }
    }
    puts("}");
    free(whole);
    return 0;
}

#endif
