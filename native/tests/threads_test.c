/* Several threads open one bundle, and share one session with plans of their own: for ThreadSanitizer to watch.
 *
 *     mtlc-threads BUNDLE [THREADS] [RUNS]
 *
 * Each thread runs every task alone and all of them, on an input of its own, and must get what its first run gave. The
 * bundle has one input of float32. */
#include <mtlc.h>

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_THREADS = 64 };

typedef struct worker {
    pthread_t thread;
    const char *path;
    mtlc_session *session; /* of all */
    int number, runs;
    const char *failed;
    mtlc_error error;
} worker;

static float *make_input(const mtlc_tensor_info *like, int number, int64_t *shape, size_t *bytes)
{
    size_t count = 1;
    for (int i = 0; i < like->rank; i++) {
        shape[i] = like->shape[i] < 0 ? 1 + number % 2 : like->shape[i];
        count *= (size_t)shape[i];
    }
    float *made = malloc(count * sizeof *made);
    for (size_t i = 0; made != NULL && i < count; i++) {
        made[i] = (float)((i * 37 + (size_t)number * 11) % 101) / 101.0f;
    }
    *bytes = count * sizeof *made;
    return made;
}

/* One plan of these tasks, run over and over: all runs give the first one's bits. */
static const char *run_plan(worker *by, const char *const *tasks, size_t count, float *input,
                            const int64_t *shape, int rank, size_t bytes)
{
    mtlc_plan *plan = NULL;
    const char *failed = NULL;
    void *first = NULL;
    size_t first_bytes = 0;
    if (mtlc_plan_new(by->session, NULL, tasks, count, &plan, &by->error) != MTLC_OK) {
        return "a plan";
    }
    if (mtlc_plan_set_input(plan, NULL, MTLC_FLOAT32, shape, rank, input, bytes, &by->error) != MTLC_OK) {
        failed = "an input";
    }
    for (int i = 0; i < by->runs && failed == NULL; i++) {
        mtlc_view result;
        if (mtlc_plan_run(plan, &by->error) != MTLC_OK ||
            mtlc_plan_output(plan, tasks[0], &result, &by->error) != MTLC_OK) {
            failed = "a run";
        } else if (first == NULL) {
            first_bytes = result.bytes;
            first = malloc(first_bytes);
            memcpy(first, result.data, first_bytes);
        } else if (first_bytes != result.bytes || memcmp(first, result.data, first_bytes) != 0) {
            failed = "a result: it is another than that of the first run";
        }
    }
    free(first);
    mtlc_plan_free(plan);
    return failed;
}

static void *work(void *given)
{
    worker *by = given;
    const mtlc_tensor_info *like = mtlc_session_input(by->session, 0);
    int64_t shape[MTLC_MAX_RANK];
    size_t bytes, count = mtlc_session_task_count(by->session);
    const char **tasks = malloc(count * sizeof *tasks);
    float *input = make_input(like, by->number, shape, &bytes);
    if (input == NULL || tasks == NULL) {
        by->failed = "memory";
        free(input);
        free(tasks);
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        tasks[i] = mtlc_session_task(by->session, (i + (size_t)by->number) % count)->output.name;
    }
    for (size_t i = 0; i <= count && by->failed == NULL; i++) {
        const bool alone = i < count;
        by->failed =
            run_plan(by, alone ? tasks + i : tasks, alone ? 1 : count, input, shape, like->rank, bytes);
    }
    mtlc_session *own = NULL; /* opening and closing beside those who run */
    if (by->failed == NULL && mtlc_session_open(by->path, NULL, &own, &by->error) != MTLC_OK) {
        by->failed = "a session";
    }
    mtlc_session_close(own);
    free(input);
    free(tasks);
    return NULL;
}

int main(int count, char **arguments)
{
    const int threads = count > 2 ? atoi(arguments[2]) : 4, runs = count > 3 ? atoi(arguments[3]) : 50;
    worker workers[MOST_THREADS] = {0};
    mtlc_session *session = NULL;
    mtlc_error error;
    int failed = 0;
    if (count < 2 || threads < 1 || threads > MOST_THREADS) {
        fputs("mtlc-threads BUNDLE [THREADS] [RUNS]\n", stderr);
        return 2;
    }
    if (mtlc_session_open(arguments[1], NULL, &session, &error) != MTLC_OK) {
        fprintf(stderr, "%s\n", error.message);
        return 2;
    }
    for (int i = 0; i < threads; i++) {
        workers[i] = (worker){.path = arguments[1], .session = session, .number = i, .runs = runs};
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0) {
            return 2;
        }
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(workers[i].thread, NULL);
        if (workers[i].failed != NULL) {
            fprintf(stderr, "thread %d: %s: %s\n", i, workers[i].failed, workers[i].error.message);
            failed = 1;
        }
    }
    mtlc_session_close(session);
    printf("{\"threads\": %d, \"runs\": %d}\n", threads, runs);
    return failed;
}
