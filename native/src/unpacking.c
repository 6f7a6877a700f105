/* Unpacks a bundle's zip into a folder of its own, and removes that again. */
#include "archive.h"
#include "bundle.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const text MANIFEST = {"manifest.json", 13};

/* Makes the folder where the system keeps temporary files. Its name and its lock are those of the Python runtime, which
 * removes what a killed process left. */
static void make_folder(check *of, bundle *made)
{
    enum { TRIES = 100, ROOM = 64 };
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    const char *above = getenv("TMPDIR");
    above = above == NULL || *above == '\0' ? "/tmp" : above;
    const size_t length = strlen(above);
    char *path = take(of, length + ROOM, 1);
    struct timespec now;
    for (int i = 0; i < TRIES; i++) {
        char drawn[9] = "";
        clock_gettime(CLOCK_REALTIME, &now);
        uint64_t number = (uint64_t)now.tv_nsec * 0x9E3779B97F4A7C15u ^ (uint64_t)getpid() << 32 ^ (uint64_t)now.tv_sec;
        for (int j = 0; j < 8; j++, number /= 36) {
            drawn[j] = letters[number % 36];
        }
        snprintf(path, length + ROOM, "%s/mtlc-bundle-%s.scratch", above, drawn);
        if (mkdir(path, 0700) == 0) {
            made->folder = text_of(path);
            made->owner = (long)getpid();
            made->held = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (made->held >= 0) {
                flock(made->held, LOCK_EX | LOCK_NB);
                return;
            }
            made->owner = 0;
            rmdir(path);
        }
        if (errno != EEXIST) {
            break;
        }
    }
    refuse(of, MTLC_UNREADABLE, "%s cannot hold what is unpacked (%s)", above, strerror(errno));
}

/* The entry of a name; NULL where there is none. */
static const entry *find_entry(const archive *in, text name)
{
    const long place = names_find(&in->by_name, name);
    return place == NO_NAME ? NULL : in->entries + place;
}

/* Writes an entry into the folder. Its room is taken first: a full disk is an error here and no fault later. */
static void write_entry(check *of, const bundle *made, const archive *in, const entry *one)
{
    const char *path = payload_path(of->memory, made, one->name);
    const int file = path == NULL ? -1 : open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file < 0) {
        refuse(of, MTLC_UNREADABLE, "%s cannot be unpacked (%s)", shown(one->name), strerror(errno));
    }
    const int full = one->bytes > 0 ? posix_fallocate(file, 0, (off_t)one->bytes) : 0;
    void *target = full != 0 || one->bytes == 0
                       ? NULL
                       : mmap(NULL, (size_t)one->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (full != 0 || target == MAP_FAILED) {
        refuse(of, MTLC_UNREADABLE, "%s cannot be unpacked (%s)", shown(one->name), strerror(full ? full : errno));
    }
    /* A refusal leaves this function: the map goes first. */
    const bool good = unpack_entry(in, one, target);
    if (target != NULL) {
        munmap(target, (size_t)one->bytes);
    }
    if (!good) {
        refuse(of, MTLC_ZIP_DAMAGED, "not a bundle folder and not a whole zip file (%s is damaged)", shown(one->name));
    }
}

void unpack_bundle(check *of, bundle *made, const uint8_t *zip, int64_t bytes)
{
    archive in;
    read_archive(of, &in, zip, bytes);
    const entry *described = find_entry(&in, MANIFEST);
    if (described == NULL) {
        refuse(of, MTLC_NOT_A_BUNDLE, "not a bundle (no manifest.json)");
    }
    if (described->bytes > MAX_MANIFEST_BYTES) {
        refuse(of, MTLC_MANIFEST_SIZE, "manifest.json is too large");
    }
    char *data = take(of, (size_t)described->bytes + 1, 1);
    if (!unpack_entry(&in, described, (uint8_t *)data)) {
        refuse(of, MTLC_ZIP_DAMAGED, "not a bundle folder and not a whole zip file (manifest.json is damaged)");
    }
    const manifest *listed = read_manifest(of, data, (size_t)described->bytes);
    check_limits(of, listed);
    for (size_t i = 0; i < listed->file_count; i++) {
        const file_info *file = listed->files + i;
        const entry *one = find_entry(&in, file->name);
        if (one == NULL) {
            refuse(of, MTLC_FILE_MISSING, "%s is missing", shown(file->name));
        }
        if (one->bytes != file->bytes) {
            refuse(of, MTLC_FILE_SIZE, "%s is %lld bytes, the manifest says %lld", shown(file->name),
                   (long long)one->bytes, (long long)file->bytes);
        }
    }
    made->unpacked = listed;
    make_folder(of, made);
    write_entry(of, made, &in, described);
    for (size_t i = 0; i < listed->file_count; i++) {
        write_entry(of, made, &in, find_entry(&in, listed->files[i].name));
    }
}

static void remove_file(const bundle *of, text name)
{
    arena scratch = {0};
    const char *path = payload_path(&scratch, of, name);
    if (path != NULL) {
        unlink(path);
    }
    arena_free(&scratch);
}

void remove_unpacked(bundle *of)
{
    if (of->held < 0) {
        return;
    }
    /* In a forked child the folder is the parent's. */
    if (of->owner == (long)getpid()) {
        for (size_t i = 0; of->unpacked != NULL && i < of->unpacked->file_count; i++) {
            remove_file(of, of->unpacked->files[i].name);
        }
        remove_file(of, MANIFEST);
        rmdir(of->folder.data);
    }
    close(of->held);
    of->held = -1;
}
