/* Opens a bundle, without trusting anything in it: a folder of plain files that the manifest lists. */
#include "bundle.h"

#include "characters.h"
#include "graph_check.h"
#include "sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const text MANIFEST = {"manifest.json", 13};

/* A check of one bundle, with the file that is open for it. */
typedef struct opening {
    check of;
    bundle *made;
    arena scratch; /* of the checks of files, freed with them */
    int file;
    void *mapped;
    size_t mapped_bytes;
} opening;

const char *payload_path(arena *memory, const bundle *of, text name)
{
    char *made = arena_take(memory, of->folder.length + name.length + 2);
    if (made != NULL) {
        memcpy(made, of->folder.data, of->folder.length);
        made[of->folder.length] = '/';
        memcpy(made + of->folder.length + 1, name.data, name.length);
    }
    return made;
}

static identity identity_of(const struct stat *found)
{
    return (identity){found->st_dev, found->st_ino, found->st_size, found->st_mtim, found->st_ctim};
}

static bool is_same(const identity *one, const identity *other)
{
    return one->device == other->device && one->inode == other->inode && one->bytes == other->bytes &&
           one->written.tv_sec == other->written.tv_sec && one->written.tv_nsec == other->written.tv_nsec &&
           one->changed.tv_sec == other->changed.tv_sec && one->changed.tv_nsec == other->changed.tv_nsec;
}

static void close_file(opening *by)
{
    if (by->mapped != NULL) {
        munmap(by->mapped, by->mapped_bytes);
        by->mapped = NULL;
    }
    if (by->file >= 0) {
        close(by->file);
        by->file = -1;
    }
}

/* Opens a plain file of the bundle as by->file; its state is given back. A link is not followed. */
static struct stat open_plain(opening *by, text name)
{
    struct stat found;
    const char *path = payload_path(by->of.memory, by->made, name);
    if (path == NULL) {
        refuse(&by->of, MTLC_MEMORY, "no memory left");
    }
    if (lstat(path, &found) != 0) {
        if (errno == ENOENT || errno == ENOTDIR) {
            refuse(&by->of, MTLC_FILE_MISSING, "%s is missing", shown(name));
        }
        refuse(&by->of, MTLC_UNREADABLE, "%s cannot be read (%s)", shown(name), strerror(errno));
    }
    if (!S_ISREG(found.st_mode)) {
        refuse(&by->of, MTLC_FILE_KIND, "%s is not a plain file", shown(name));
    }
    by->file = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (by->file < 0 || fstat(by->file, &found) != 0) {
        refuse(&by->of, MTLC_UNREADABLE, "%s cannot be read (%s)", shown(name), strerror(errno));
    }
    if (!S_ISREG(found.st_mode)) {
        refuse(&by->of, MTLC_FILE_KIND, "%s is not a plain file", shown(name));
    }
    return found;
}

/* Reads up to `bytes` from an open file; -1 on an error. */
static int64_t read_up_to(int file, void *target, size_t bytes)
{
    size_t done = 0;
    while (done < bytes) {
        const ssize_t part = read(file, (char *)target + done, bytes - done);
        if (part < 0 && errno == EINTR) {
            continue;
        }
        if (part < 0) {
            return -1;
        }
        if (part == 0) {
            break;
        }
        done += (size_t)part;
    }
    return (int64_t)done;
}

static void read_described(opening *by)
{
    const struct stat found = open_plain(by, MANIFEST);
    if (found.st_size > MAX_MANIFEST_BYTES) {
        refuse(&by->of, MTLC_MANIFEST_SIZE, "manifest.json is too large");
    }
    char *data = take(&by->of, (size_t)found.st_size + 1, 1);
    const int64_t bytes = read_up_to(by->file, data, (size_t)found.st_size + 1);
    if (bytes < 0) {
        refuse(&by->of, MTLC_UNREADABLE, "manifest.json cannot be read (%s)", strerror(errno));
    }
    by->made->manifest = read_manifest(&by->of, data, (size_t)bytes);
    by->made->seen = take(&by->of, by->made->manifest->file_count + 1, sizeof(identity));
    by->made->seen[by->made->manifest->file_count] = identity_of(&found);
    close_file(by);
}

void check_limits(check *of, const manifest *in)
{
    int64_t total = 0;
    for (size_t i = 0; i < in->file_count; i++) {
        const int64_t bytes = in->files[i].bytes;
        total = bytes > MAX_TOTAL_BYTES - total ? MAX_TOTAL_BYTES + 1 : total + bytes;
        if (total > MAX_TOTAL_BYTES || in->file_count > MAX_FILES) {
            refuse(of, MTLC_LIMIT, "it has more than %d files or 8 GiB", MAX_FILES);
        }
    }
    names seen = {0};
    for (size_t i = 0; i < in->file_count; i++) {
        bool added;
        const text small = folded(in->files[i].name, take(of, 3 * in->files[i].name.length + 1, 1));
        names_add(of, &seen, small, &added);
        if (!added) {
            refuse(of, MTLC_TWICE, "file %s is another's where case is ignored", shown(in->files[i].name));
        }
    }
}

/* The SHA-256 of an open file of `bytes`; 1 if it has another size, -1 if it cannot be read. */
static int hash_file(int file, int64_t bytes, char digest[65])
{
    enum { CHUNK = 1 << 16 };
    uint8_t chunk[CHUNK];
    sha256 sum;
    int64_t left = bytes;
    sha256_begin(&sum);
    for (;;) {
        const int64_t part = read_up_to(file, chunk, left < CHUNK ? (size_t)left + 1 : CHUNK);
        if (part < 0) {
            return -1;
        }
        left -= part;
        if (left < 0) {
            return 1;
        }
        sha256_add(&sum, chunk, (size_t)part);
        if (part == 0) {
            break;
        }
    }
    sha256_end(&sum, digest);
    return left != 0;
}

static void check_file(opening *by, size_t place)
{
    const file_info *one = by->made->manifest->files + place;
    char digest[65];
    const struct stat found = open_plain(by, one->name);
    by->made->seen[place] = identity_of(&found);
    if (found.st_size != one->bytes) {
        refuse(&by->of, MTLC_FILE_SIZE, "%s is %lld bytes, the manifest says %lld", shown(one->name),
               (long long)found.st_size, (long long)one->bytes);
    }
    const int outcome = hash_file(by->file, one->bytes, digest);
    if (outcome < 0) {
        refuse(&by->of, MTLC_UNREADABLE, "%s cannot be read (%s)", shown(one->name), strerror(errno));
    }
    if (outcome > 0) {
        refuse(&by->of, MTLC_FILE_SIZE, "%s does not have the %lld bytes that the manifest says", shown(one->name),
               (long long)one->bytes);
    }
    if (strcmp(digest, one->sha256) != 0) {
        refuse(&by->of, MTLC_FILE_DIGEST, "%s was altered or damaged: its SHA-256 is not the manifest's",
               shown(one->name));
    }
    close_file(by);
}

static void check_program_file(opening *by, text name)
{
    const struct stat found = open_plain(by, name);
    if (found.st_size > INT32_MAX) {
        refuse(&by->of, MTLC_GRAPH_DAMAGED, "%s: the file is larger than an ONNX file can be", shown(name));
    }
    static const uint8_t nothing;
    buffer content = {&nothing, &nothing};
    if (found.st_size > 0) {
        by->mapped_bytes = (size_t)found.st_size;
        by->mapped = mmap(NULL, by->mapped_bytes, PROT_READ, MAP_PRIVATE, by->file, 0);
        if (by->mapped == MAP_FAILED) {
            by->mapped = NULL;
            refuse(&by->of, MTLC_UNREADABLE, "%s cannot be mapped (%s)", shown(name), strerror(errno));
        }
        content = (buffer){by->mapped, (const uint8_t *)by->mapped + found.st_size};
    }
    check_graph(&by->of, name.data, content, by->made->manifest);
    check_work(&by->of, name.data, content, by->made->folder.data);
    close_file(by);
}

static void check_programs(opening *by)
{
    const manifest *in = by->made->manifest;
    names seen = {0};
    for (size_t i = 0; i < in->program_count; i++) {
        names_add(&by->of, &seen, in->programs[i].file, NULL);
    }
    for (size_t i = 0; i < in->task_count; i++) {
        if (in->tasks[i].has_decoder) {
            names_add(&by->of, &seen, in->tasks[i].decoder, NULL);
        }
    }
    for (size_t i = 0; i < seen.count; i++) {
        check_program_file(by, seen.listed[i]);
    }
}

/* Maps the zip while it is unpacked. */
static void open_zip(opening *by, const char *path)
{
    struct stat found;
    by->file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (by->file < 0 || fstat(by->file, &found) != 0) {
        refuse(&by->of, MTLC_UNREADABLE, "cannot be read (%s)", strerror(errno));
    }
    if (found.st_size == 0) {
        refuse(&by->of, MTLC_ZIP_DAMAGED, "not a bundle folder and not a whole zip file (it is empty)");
    }
    by->mapped_bytes = (size_t)found.st_size;
    by->mapped = mmap(NULL, by->mapped_bytes, PROT_READ, MAP_PRIVATE, by->file, 0);
    if (by->mapped == MAP_FAILED) {
        by->mapped = NULL;
        refuse(&by->of, MTLC_UNREADABLE, "cannot be mapped (%s)", strerror(errno));
    }
    unpack_bundle(&by->of, by->made, by->mapped, found.st_size);
    close_file(by);
}

static void open_path(opening *by, const char *path)
{
    struct stat found;
    const text given = text_of(path);
    char *kept = take(&by->of, given.length + 1, 1);
    by->made->path = by->made->folder = (text){memcpy(kept, path, given.length), given.length};
    if (!is_utf8(given)) {
        refuse(&by->of, MTLC_ARGUMENT, "its name is not UTF-8, which the engine cannot open: rename it");
    }
    if (stat(path, &found) != 0) {
        if (errno == ENOENT || errno == ENOTDIR) {
            refuse(&by->of, MTLC_NOT_FOUND, "no such bundle");
        }
        refuse(&by->of, MTLC_UNREADABLE, "cannot be read (%s)", strerror(errno));
    }
    if (S_ISREG(found.st_mode)) {
        open_zip(by, path);
    } else if (!S_ISDIR(found.st_mode)) {
        refuse(&by->of, MTLC_NOT_A_BUNDLE, "not a bundle: neither a folder nor a plain file");
    }
    const char *inner = payload_path(by->of.memory, by->made, MANIFEST);
    if (inner == NULL || stat(inner, &found) != 0) {
        refuse(&by->of, MTLC_NOT_A_BUNDLE, "not a bundle (no manifest.json)");
    }
    read_described(by);
    by->of.memory = &by->scratch;
    check_limits(&by->of, by->made->manifest);
    for (size_t i = 0; i < by->made->manifest->file_count; i++) {
        check_file(by, i);
    }
    check_programs(by);
}

/* What is local to the function of a setjmp is lost where it is changed: so the opening is not. */
static bool opens(opening *by, const char *path)
{
    if (setjmp(by->of.end) != 0) {
        return false;
    }
    open_path(by, path);
    return true;
}

mtlc_code open_bundle(bundle *made, const char *path, mtlc_error *error)
{
    opening by = {.made = made, .file = -1};
    memset(made, 0, sizeof *made);
    made->held = -1;
    by.of.memory = &made->memory;
    const bool good = opens(&by, path);
    close_file(&by);
    arena_free(&by.scratch);
    return good ? MTLC_OK : fail(error, by.of.error.code, "%s: %s", path, by.of.error.message);
}

void close_bundle(bundle *of)
{
    remove_unpacked(of);
    arena_free(&of->memory);
    memset(of, 0, sizeof *of);
}

/* Whether a payload is what was checked, by its identity or else by its content. */
static bool is_unchanged(bundle *of, size_t place, arena *scratch)
{
    const manifest *in = of->manifest;
    const bool described = place == in->file_count;
    const char *path = payload_path(scratch, of, described ? MANIFEST : in->files[place].name);
    const int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat found;
    char digest[65];
    bool good = false;
    if (file >= 0 && fstat(file, &found) == 0) {
        const identity now = identity_of(&found);
        good = is_same(&now, of->seen + place);
        if (!good && S_ISREG(found.st_mode) && hash_file(file, found.st_size, digest) == 0) {
            good = strcmp(digest, described ? in->sha256 : in->files[place].sha256) == 0;
            if (good) {
                of->seen[place] = now;
            }
        }
    }
    if (file >= 0) {
        close(file);
    }
    return good;
}

/* Whether a payload is a program, a decoder or an IR, which other programs do not read. */
static bool *own_files(const bundle *of, arena *scratch)
{
    const manifest *in = of->manifest;
    bool *own = arena_take(scratch, in->file_count + 1);
    for (size_t i = 0; own != NULL && i < in->program_count; i++) {
        own[names_find(&in->file_names, in->programs[i].file)] = true;
    }
    for (size_t i = 0; own != NULL && i < in->task_count; i++) {
        if (in->tasks[i].has_decoder) {
            own[names_find(&in->file_names, in->tasks[i].decoder)] = true;
        }
    }
    for (size_t i = 0; own != NULL && in->openvino != NULL && i < in->openvino->count; i++) {
        own[names_find(&in->file_names, in->openvino->files[i])] = true;
    }
    return own;
}

mtlc_code check_unchanged(bundle *of, text name, mtlc_error *error)
{
    const manifest *in = of->manifest;
    arena scratch = {0};
    const bool *own = own_files(of, &scratch);
    const size_t mine = (size_t)names_find(&in->file_names, name);
    mtlc_code outcome = own == NULL ? fail(error, MTLC_MEMORY, "no memory left") : MTLC_OK;
    for (size_t i = 0; outcome == MTLC_OK && i <= in->file_count; i++) {
        if ((i == mine || !own[i]) && !is_unchanged(of, i, &scratch)) {
            outcome = fail(error, MTLC_FILE_CHANGED,
                           "%s: %s is not what it was when the bundle was opened: open it again", of->path.data,
                           i == in->file_count ? "manifest.json" : in->files[i].name.data);
        }
    }
    arena_free(&scratch);
    return outcome;
}
