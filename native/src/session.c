/* Opens sessions: a checked bundle, an engine, and programs that are loaded when they are needed. */
#include "session.h"

#include "processor.h"

#include <stdlib.h>
#include <string.h>

static volatile unsigned forks;
static pthread_once_t watched = PTHREAD_ONCE_INIT;

static void count_fork(void)
{
    forks++;
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, count_fork);
}

void mtlc_options_init(mtlc_options *options)
{
    *options = (mtlc_options){.size = sizeof *options};
}

mtlc_code mtlc_check(const char *path, mtlc_error *error)
{
    bundle opened;
    if (path == NULL) {
        return fail(error, MTLC_ARGUMENT, "the path is NULL");
    }
    const mtlc_code code = open_bundle(&opened, path, error);
    close_bundle(&opened);
    return code;
}

static mtlc_tensor_info tensor_info(const char *name, const tensor *of)
{
    mtlc_tensor_info made = {.name = name, .dtype = of->dtype, .rank = of->shape.rank};
    for (int i = 0; i < made.rank; i++) {
        made.shape[i] = of->shape.at[i];
        made.dimensions[i] = of->shape.at[i] < 0 ? of->shape.named[i].data : NULL;
    }
    return made;
}

/* Lays out what callers ask a session for. */
static bool describe(mtlc_session *made)
{
    const manifest *in = made->bundle.manifest;
    arena *memory = &made->bundle.memory;
    made->tasks = arena_take(memory, in->task_count * sizeof *made->tasks);
    made->inputs = arena_take(memory, in->input_count * sizeof *made->inputs);
    made->named = arena_take(memory, (in->configuration_count + 1) * sizeof *made->named);
    made->file_of = arena_take(memory, (in->program_count + 1) * sizeof *made->file_of);
    made->files = arena_take(memory, (in->program_count + 1) * sizeof *made->files);
    made->loaded = arena_take(memory, (in->program_count + 1) * sizeof(ort_session *));
    long *seen = arena_take(memory, (in->file_count + 1) * sizeof *seen);
    if (!made->tasks || !made->inputs || !made->named || !made->file_of || !made->files || !made->loaded || !seen) {
        return false;
    }
    for (size_t i = 0; i < in->task_count; i++) {
        const task *of = in->tasks + i;
        const char **classes = arena_take(memory, (of->classes.count + 1) * sizeof *classes);
        if (classes == NULL) {
            return false;
        }
        for (size_t j = 0; j < of->classes.count; j++) {
            classes[j] = of->classes.at[j].data;
        }
        made->tasks[i] = (mtlc_task_info){tensor_info(of->name.data, &of->output), of->kind.data, of->metric.data,
                                          of->unit.data, of->classes.count, classes};
    }
    for (size_t i = 0; i < in->input_count; i++) {
        made->inputs[i] = tensor_info(in->inputs[i].name.data, in->inputs + i);
    }
    /* A bundle without widths runs all of its programs, whatever else it lists. */
    for (size_t i = 0; i < in->configuration_count; i++) {
        if (in->widths != NULL || text_equal(in->configurations[i].name, TEXT("default"))) {
            made->named[made->named_count] = in->configurations + i;
            made->named_count += in->widths != NULL || made->named_count == 0;
        }
    }
    for (size_t i = 0; i < in->program_count; i++) {
        long *place = seen + names_find(&in->file_names, in->programs[i].file);
        if (*place == 0) {
            made->files[made->file_count] = in->programs[i].file;
            *place = (long)++made->file_count;
        }
        made->file_of[i] = (size_t)*place - 1;
    }
    return true;
}

mtlc_code mtlc_session_open(const char *path, const mtlc_options *options, mtlc_session **session, mtlc_error *error)
{
    mtlc_options chosen;
    mtlc_options_init(&chosen);
    if (session == NULL || path == NULL) {
        return fail(error, MTLC_ARGUMENT, "the path or the place for the session is NULL");
    }
    *session = NULL;
    if (options != NULL) {
        memcpy(&chosen, options, options->size < sizeof chosen ? options->size : sizeof chosen);
    }
    if (chosen.threads < 0) {
        return fail(error, MTLC_ARGUMENT, "threads = %d: must be 1 or more, or 0", chosen.threads);
    }
    pthread_once(&watched, watch_forks);
    mtlc_session *made = calloc(1, sizeof *made);
    if (made == NULL) {
        return fail(error, MTLC_MEMORY, "no memory left");
    }
    pthread_mutex_init(&made->lock, NULL);
    made->threads = chosen.threads;
    made->born = forks;
    mtlc_code code = open_bundle(&made->bundle, path, error);
    if (code == MTLC_OK && made->bundle.manifest->full_range_int8 && processor_saturates()) {
        code = fail(error, MTLC_PROCESSOR,
                    "%s: its INT8 weights use the full range, and this processor (x86 without VNNI) would give wrong "
                    "results without a word: quantise it with --target x86", path);
    }
    if (code == MTLC_OK && !describe(made)) {
        code = fail(error, MTLC_MEMORY, "no memory left");
    }
    if (code == MTLC_OK) {
        code = find_engine(chosen.engine, &made->engine, error);
    }
    if (code == MTLC_OK && chosen.eager) {
        code = mtlc_session_load(made, error);
    }
    if (code != MTLC_OK) {
        mtlc_session_close(made);
        return code;
    }
    *session = made;
    return MTLC_OK;
}

void mtlc_session_close(mtlc_session *session)
{
    if (session == NULL) {
        return;
    }
    /* In a forked child the threads of the programs do not exist: the engine would wait for them. */
    for (size_t i = 0; i < session->file_count && session->born == forks; i++) {
        if (session->loaded[i] != NULL) {
            session->engine->api.ReleaseSession(session->loaded[i]);
        }
    }
    close_bundle(&session->bundle);
    pthread_mutex_destroy(&session->lock);
    free(session);
}

size_t mtlc_session_task_count(const mtlc_session *session)
{
    return session->bundle.manifest->task_count;
}

size_t mtlc_session_input_count(const mtlc_session *session)
{
    return session->bundle.manifest->input_count;
}

const mtlc_task_info *mtlc_session_task(const mtlc_session *session, size_t place)
{
    return place < session->bundle.manifest->task_count ? session->tasks + place : NULL;
}

const mtlc_tensor_info *mtlc_session_input(const mtlc_session *session, size_t place)
{
    return place < session->bundle.manifest->input_count ? session->inputs + place : NULL;
}

size_t mtlc_session_configuration_count(const mtlc_session *session)
{
    return session->named_count;
}

const char *mtlc_session_configuration(const mtlc_session *session, size_t place)
{
    return place < session->named_count ? session->named[place]->name.data : NULL;
}

const char *mtlc_session_engine(const mtlc_session *session)
{
    return session->engine->version;
}

mtlc_code check_process(const mtlc_session *session, mtlc_error *error)
{
    if (session->born == forks) {
        return MTLC_OK;
    }
    return fail(error, MTLC_ARGUMENT,
                "%s: the session was opened in the process that this one was forked from; open one of its own here",
                session->bundle.path.data);
}

static mtlc_code load_file(mtlc_session *session, size_t place, mtlc_error *error)
{
    mtlc_error why;
    const text name = session->files[place];
    mtlc_code code = check_unchanged(&session->bundle, name, error);
    if (code != MTLC_OK) {
        return code;
    }
    arena scratch = {0};
    ort_session *made = NULL;
    const char *path = payload_path(&scratch, &session->bundle, name);
    code = path == NULL ? fail(&why, MTLC_MEMORY, "no memory left")
                        : engine_load(session->engine, path, session->threads, &made, &why);
    arena_free(&scratch);
    if (code != MTLC_OK) {
        return fail(error, code, "%s: program %s: %s", session->bundle.path.data, name.data, why.message);
    }
    code = check_unchanged(&session->bundle, name, error); /* while it was being read, too */
    if (code != MTLC_OK) {
        session->engine->api.ReleaseSession(made);
        return code;
    }
    session->loaded[place] = made;
    return MTLC_OK;
}

mtlc_code load_program(mtlc_session *session, size_t program, ort_session **loaded, mtlc_error *error)
{
    const size_t place = session->file_of[program];
    mtlc_code code = check_process(session, error);
    if (code != MTLC_OK) {
        return code;
    }
    pthread_mutex_lock(&session->lock);
    if (session->loaded[place] == NULL) {
        code = load_file(session, place, error);
    }
    *loaded = session->loaded[place];
    pthread_mutex_unlock(&session->lock);
    return code;
}

mtlc_code mtlc_session_load(mtlc_session *session, mtlc_error *error)
{
    mtlc_code code = MTLC_OK;
    ort_session *loaded;
    for (size_t i = 0; code == MTLC_OK && i < session->bundle.manifest->program_count; i++) {
        code = load_program(session, i, &loaded, error);
    }
    return code;
}

mtlc_code read_tasks(const mtlc_session *session, const char *const *tasks, size_t count, uint64_t *bits,
                     mtlc_error *error)
{
    const manifest *in = session->bundle.manifest;
    memset(bits, 0, in->mask_words * sizeof *bits);
    for (size_t i = 0; count == 0 && i < in->task_count; i++) {
        bits[i / 64] |= (uint64_t)1 << i % 64;
    }
    for (size_t i = 0; i < count; i++) {
        const long place = tasks == NULL || tasks[i] == NULL ? NO_NAME : names_find(&in->task_names, text_of(tasks[i]));
        if (place == NO_NAME) {
            return fail(error, MTLC_TASK, "%s: no task %s", session->bundle.path.data,
                        tasks == NULL || tasks[i] == NULL ? "NULL" : shown(text_of(tasks[i])));
        }
        bits[place / 64] |= (uint64_t)1 << place % 64;
    }
    return MTLC_OK;
}

bool shares_task(const uint64_t *one, const uint64_t *other, size_t words)
{
    for (size_t i = 0; i < words; i++) {
        if (one[i] & other[i]) {
            return true;
        }
    }
    return false;
}
