/* Reads bundles in one zip file: checked entry by entry, as the Python runtime checks them. */
#include "archive.h"

#include "characters.h"
#include "inflate.h"
#include "manifest.h"

#include <stdlib.h>
#include <string.h>

enum {
    END_BYTES = 22,
    CENTRAL_BYTES = 46,
    LOCAL_BYTES = 30,
    MOST_COMMENT = 1 << 16,
    MOST_DIRECTORY = 2 << 20,
    MOST_RATIO = 100,
    MOST_VERSION = 63,
    STORED = 0,
    DEFLATED = 8,
    FLAG_ENCRYPTED = 1,
    FLAG_PATCHED = 1 << 5,
    FLAG_STRONG = 1 << 6,
    FLAG_UTF8 = 1 << 11
};

static uint32_t word(const uint8_t *at, int bytes)
{
    uint32_t found = 0;
    for (int i = bytes - 1; i >= 0; i--) {
        found = found << 8 | at[i];
    }
    return found;
}

static void NEVER_RETURNS damaged(check *of, const char *why)
{
    refuse(of, MTLC_ZIP_DAMAGED, "not a bundle folder and not a whole zip file (%s)", why);
}

static const uint8_t *find_end(check *of, const uint8_t *at, int64_t bytes)
{
    const int64_t least = bytes > MOST_COMMENT + END_BYTES ? bytes - MOST_COMMENT - END_BYTES : 0;
    for (int64_t place = bytes - END_BYTES; place >= least; place--) {
        if (memcmp(at + place, "PK\5\6", 4) == 0) {
            return at + place;
        }
    }
    damaged(of, "it has no directory");
}

static void read_entry(check *of, const uint8_t *at, int64_t left, entry *made, int64_t *used)
{
    if (left < CENTRAL_BYTES || memcmp(at, "PK\1\2", 4) != 0) {
        damaged(of, "its directory is damaged");
    }
    /* As Python's zipfile: what reaches beyond the directory's end ends there. */
    size_t name = word(at + 28, 2);
    *used = CENTRAL_BYTES + (int64_t)name + word(at + 30, 2) + word(at + 32, 2);
    *used = *used > left ? left : *used;
    name = (int64_t)name > left - CENTRAL_BYTES ? (size_t)(left - CENTRAL_BYTES) : name;
    if (at[6] > MOST_VERSION) {
        damaged(of, "of a version that is not known");
    }
    *made = (entry){.flags = word(at + 8, 2), .method = word(at + 10, 2), .crc = word(at + 16, 4),
                    .packed_bytes = word(at + 20, 4), .bytes = word(at + 24, 4), .mode = word(at + 38, 4) >> 16,
                    .offset = word(at + 42, 4)};
    if (made->packed_bytes == UINT32_MAX || made->bytes == UINT32_MAX || made->offset == UINT32_MAX) {
        refuse(of, MTLC_UNSUPPORTED, "a zip of more than 4 GiB: unpack it first");
    }
    char *copied = take(of, name + 1, 1);
    memcpy(copied, at + CENTRAL_BYTES, name);
    made->name = text_of(copied); /* as far as a zero */
    if ((made->flags & FLAG_UTF8) && !is_utf8(made->name)) {
        damaged(of, "a name is not UTF-8");
    }
}

/* Whether a name leads out of the folder: a path from the root or of a drive, or a part that is "..". */
static bool leads_out(text name)
{
    const char *part = name.data;
    if (*part == '/' || *part == '\\' || strchr(name.data, ':') != NULL) {
        return true;
    }
    for (;;) {
        const size_t length = strcspn(part, "/\\");
        if (length == 2 && part[0] == '.' && part[1] == '.') {
            return true;
        }
        if (part[length] == '\0') {
            return false;
        }
        part += length + 1;
    }
}

static void check_entry(check *of, archive *in, const entry *one)
{
    bool added;
    if (leads_out(one->name)) {
        refuse(of, MTLC_ZIP_ENTRY, "the entry %s leads out of the bundle", shown(one->name));
    }
    names_add(of, &in->by_name, one->name, &added);
    if (!added) {
        refuse(of, MTLC_ZIP_ENTRY, "the entry %s is there twice", shown(one->name));
    }
    if ((one->mode & 0170000) == 0120000) {
        refuse(of, MTLC_ZIP_ENTRY, "the entry %s is a symbolic link", shown(one->name));
    }
    if (one->method != STORED && one->method != DEFLATED) {
        refuse(of, MTLC_ZIP_ENTRY, "the entry %s is compressed in a way that bundles are not: store or deflate it",
               shown(one->name));
    }
    if (one->flags & FLAG_ENCRYPTED) {
        refuse(of, MTLC_ZIP_ENTRY, "the entry %s is encrypted", shown(one->name));
    }
    if (one->bytes > (one->packed_bytes > 1 ? one->packed_bytes : 1) * MOST_RATIO) {
        refuse(of, MTLC_ZIP_ENTRY, "the entry %s unpacks to more than %d times its size", shown(one->name), MOST_RATIO);
    }
}

static int by_offset(const void *one, const void *other)
{
    const int64_t a = (*(entry *const *)one)->offset, b = (*(entry *const *)other)->offset;
    return (a > b) - (a < b);
}

/* Entries that share bytes each unpack to little more than they have, and all of them to much more. */
static void check_places(check *of, archive *in)
{
    entry **sorted = take(of, in->count + 1, sizeof *sorted);
    int64_t end = 0;
    for (size_t i = 0; i < in->count; i++) {
        sorted[i] = in->entries + i;
    }
    qsort(sorted, in->count, sizeof *sorted, by_offset);
    for (size_t i = 0; i < in->count; i++) {
        entry *one = sorted[i];
        const uint8_t *at = in->at + one->offset;
        if (one->offset > in->bytes - LOCAL_BYTES || memcmp(at, "PK\3\4", 4) != 0) {
            damaged(of, "an entry does not begin where the zip says");
        }
        if (one->offset < end) {
            refuse(of, MTLC_ZIP_ENTRY, "the entries %s and another overlap", shown(one->name));
        }
        one->data = one->offset + LOCAL_BYTES + word(at + 26, 2) + word(at + 28, 2);
        end = one->data + one->packed_bytes;
    }
}

void read_archive(check *of, archive *made, const uint8_t *at, int64_t bytes)
{
    *made = (archive){.at = at, .bytes = bytes};
    if (bytes < END_BYTES) {
        damaged(of, "cut off");
    }
    const uint8_t *end = find_end(of, at, bytes);
    const int64_t size = word(end + 12, 4), begin = word(end + 16, 4);
    if (size > MOST_DIRECTORY) {
        refuse(of, MTLC_LIMIT, "the zip's directory has more than %d MiB", MOST_DIRECTORY >> 20);
    }
    if (begin + size != end - at) {
        damaged(of, "its directory is not where it says");
    }
    made->entries = take(of, (size_t)(size / CENTRAL_BYTES) + 1, sizeof *made->entries);
    for (int64_t place = 0, used; place < size; place += used) {
        read_entry(of, at + begin + place, size - place, made->entries + made->count++, &used);
    }
    int64_t total = 0;
    if (made->count > MAX_FILES) {
        refuse(of, MTLC_LIMIT, "it holds %zu files, more than %d", made->count, MAX_FILES);
    }
    for (size_t i = 0; i < made->count; i++) {
        check_entry(of, made, made->entries + i);
        total += made->entries[i].bytes;
    }
    if (total > MAX_TOTAL_BYTES) {
        refuse(of, MTLC_LIMIT, "it unpacks to more than 8 GiB");
    }
    check_places(of, made);
}

bool unpack_entry(const archive *in, const entry *one, uint8_t *target)
{
    const uint8_t *at = in->at + one->offset, *packed = in->at + one->data;
    const size_t name = word(at + 26, 2);
    /* The file's name is there a second time; a reader that goes by the other one must not find another file. */
    bool good = one->data + one->packed_bytes <= in->bytes && name == one->name.length &&
                memcmp(at + LOCAL_BYTES, one->name.data, name) == 0 && !(one->flags & (FLAG_PATCHED | FLAG_STRONG));
    if (good && one->method == STORED) {
        good = one->packed_bytes == one->bytes;
        if (good && one->bytes > 0) {
            memcpy(target, packed, (size_t)one->bytes);
        }
    } else if (good) {
        good = inflate_all(packed, (size_t)one->packed_bytes, target, (size_t)one->bytes);
    }
    return good && crc32_of(target, (size_t)one->bytes) == one->crc;
}
