/* Runs bundles from the command line: check, info, infer, bench. */
#include "arrays.h"
#include "options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { EXIT_BAD_INPUT = 2, EXIT_UNAVAILABLE = 5 };

/* What a verb holds, freed in one place. */
typedef struct running {
    options options;
    mtlc_session *session;
    mtlc_configuration *configuration;
    mtlc_plan *plan;
    array arrays[MOST_LISTED];
    size_t array_count;
    double opened_ms, opened_cpu_ms;
} running;

static double ms_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static double now_ms(void)
{
    return ms_of(CLOCK_MONOTONIC);
}

static double cpu_ms(void)
{
    return ms_of(CLOCK_PROCESS_CPUTIME_ID);
}

/* The most memory of this process; what the system counts elsewhere begins with that of the process before it. */
static long peak_kb(void)
{
    char line[128];
    long found = 0;
    FILE *told = fopen("/proc/self/status", "r");
    while (told != NULL && found == 0 && fgets(line, sizeof line, told) != NULL) {
        found = strncmp(line, "VmHWM:", 6) == 0 ? strtol(line + 6, NULL, 10) : 0;
    }
    if (told != NULL) {
        fclose(told);
    }
    return found;
}

static int tell(const mtlc_error *error)
{
    const mtlc_code code = error->code;
    const bool cannot = code == MTLC_ENGINE || code == MTLC_PROCESSOR || code == MTLC_UNSUPPORTED;
    fprintf(stderr, "mtlc-run: %s [%s]\n", error->message, mtlc_code_name(code));
    return cannot ? EXIT_UNAVAILABLE : EXIT_BAD_INPUT;
}

static int tell_line(const char *why)
{
    fprintf(stderr, "mtlc-run: %s\n", why);
    return EXIT_BAD_INPUT;
}

/* A text as JSON has it. */
static void print_text(const char *of)
{
    putchar('"');
    for (; *of != '\0'; of++) {
        const unsigned char c = (unsigned char)*of;
        if (c == '"' || c == '\\') {
            printf("\\%c", c);
        } else if (c < 0x20 || c == 0x7F) {
            printf("\\u%04x", c);
        } else {
            putchar(c);
        }
    }
    putchar('"');
}

static void print_shape(const mtlc_tensor_info *of)
{
    putchar('[');
    for (int i = 0; i < of->rank; i++) {
        fputs(i ? ", " : "", stdout);
        if (of->shape[i] < 0) {
            print_text(of->dimensions[i]);
        } else {
            printf("%lld", (long long)of->shape[i]);
        }
    }
    putchar(']');
}

static int open_session(running *of)
{
    mtlc_error error;
    mtlc_options chosen;
    mtlc_options_init(&chosen);
    chosen.engine = of->options.engine;
    chosen.threads = of->options.threads;
    const double begun = now_ms(), begun_cpu = cpu_ms();
    if (mtlc_session_open(of->options.bundle, &chosen, &of->session, &error) != MTLC_OK) {
        return tell(&error);
    }
    mtlc_code code = MTLC_OK;
    if (of->options.configuration != NULL) {
        code = mtlc_configuration_named(of->session, of->options.configuration, &of->configuration, &error);
    } else if (of->options.budget != NULL) {
        code = mtlc_configuration_within(of->session, of->options.budget, of->options.preferences,
                                         of->options.preference_count, of->options.tasks.at, of->options.tasks.count,
                                         &of->configuration, &error);
    }
    if (code == MTLC_OK && strcmp(of->options.verb, "info") != 0) {
        code = mtlc_plan_new(of->session, of->configuration, of->options.tasks.at, of->options.tasks.count, &of->plan,
                             &error);
    }
    of->opened_ms = now_ms() - begun;
    of->opened_cpu_ms = cpu_ms() - begun_cpu;
    return code == MTLC_OK ? 0 : tell(&error);
}

/* -- check, info -------------------------------------------------------------------------------------------------- */

static int run_check(running *of)
{
    mtlc_error error;
    if (mtlc_check(of->options.bundle, &error) != MTLC_OK) {
        return tell(&error);
    }
    printf(of->options.json ? "{\"code\": \"ok\"}\n" : "the bundle is whole\n");
    return 0;
}

static int run_info(running *of)
{
    printf("{\"engine\": ");
    print_text(mtlc_session_engine(of->session));
    printf(",\n \"inputs\": {");
    for (size_t i = 0; i < mtlc_session_input_count(of->session); i++) {
        const mtlc_tensor_info *one = mtlc_session_input(of->session, i);
        fputs(i ? ", " : "", stdout);
        print_text(one->name);
        printf(": {\"dtype\": \"%s\", \"shape\": ", mtlc_dtype_name(one->dtype));
        print_shape(one);
        putchar('}');
    }
    printf("},\n \"tasks\": {");
    for (size_t i = 0; i < mtlc_session_task_count(of->session); i++) {
        const mtlc_task_info *one = mtlc_session_task(of->session, i);
        fputs(i ? ",\n  " : "\n  ", stdout);
        print_text(one->output.name);
        printf(": {\"dtype\": \"%s\", \"shape\": ", mtlc_dtype_name(one->output.dtype));
        print_shape(&one->output);
        printf(", \"kind\": \"%s\", \"metric\": ", one->kind);
        print_text(one->metric);
        printf(", \"unit\": ");
        print_text(one->unit);
        putchar('}');
    }
    printf("},\n \"configurations\": [");
    for (size_t i = 0; i < mtlc_session_configuration_count(of->session); i++) {
        fputs(i ? ", " : "", stdout);
        print_text(mtlc_session_configuration(of->session, i));
    }
    puts("]}");
    return 0;
}

/* -- infer -------------------------------------------------------------------------------------------------------- */

static bool ends(const char *path, const char *with)
{
    const size_t length = strlen(path), other = strlen(with);
    return length >= other && strcmp(path + length - other, with) == 0;
}

static const mtlc_tensor_info *find_input(const running *of, const char *name, size_t length)
{
    for (size_t i = 0; i < mtlc_session_input_count(of->session); i++) {
        const mtlc_tensor_info *one = mtlc_session_input(of->session, i);
        if (strlen(one->name) == length && memcmp(one->name, name, length) == 0) {
            return one;
        }
    }
    return NULL;
}

static bool read_picture(const running *of, const char *path, array *made, char why[LINE])
{
    picture read;
    mtlc_error error;
    if (!read_pnm(path, &read, why)) {
        return false;
    }
    const mtlc_tensor_info *input = mtlc_session_input(of->session, 0);
    const int64_t channels = input->rank == 4 && input->shape[1] == 1 ? 1 : 3;
    const bool sized = input->rank == 4 && input->shape[2] > 0 && input->shape[3] > 0;
    const int64_t height = sized ? input->shape[2] : read.height, width = sized ? input->shape[3] : read.width;
    const size_t bytes = (size_t)(channels * height * width) * sizeof(float);
    float *target = malloc(bytes);
    mtlc_code code = MTLC_MEMORY;
    if (target != NULL) {
        code = mtlc_preprocess(of->session, read.pixels, read.height, read.width, read.channels, target, bytes, &error);
    }
    free(read.pixels);
    if (code != MTLC_OK) {
        snprintf(why, LINE, "%.400s: %s", path, target == NULL ? "no memory left" : error.message);
        free(target);
        return false;
    }
    *made = (array){{MTLC_FLOAT32, 4, {1, channels, height, width}, target, bytes}, target};
    return true;
}

/* Binds what "NAME=FILE" or "FILE" says. */
static int bind_input(running *of, const char *given)
{
    char why[LINE];
    mtlc_error error;
    const char *equals = strchr(given, '=');
    const mtlc_tensor_info *input = equals == NULL ? NULL : find_input(of, given, (size_t)(equals - given));
    const char *path = input == NULL ? given : equals + 1;
    array *made = of->arrays + of->array_count;
    if (input == NULL && mtlc_session_input_count(of->session) == 1) {
        input = mtlc_session_input(of->session, 0);
    }
    if (input == NULL) {
        return tell_line("--input: the bundle has several inputs: write NAME=FILE");
    }
    const bool pictured = ends(path, ".ppm") || ends(path, ".pgm");
    const bool good = pictured            ? read_picture(of, path, made, why)
                      : ends(path, ".npy") ? read_npy(path, made, why)
                                           : read_raw(path, input, made, why);
    if (!good) {
        return tell_line(why);
    }
    of->array_count++;
    if (mtlc_plan_set_input(of->plan, input->name, made->view.dtype, made->view.shape, made->view.rank, made->view.data,
                            made->view.bytes, &error) != MTLC_OK) {
        return tell(&error);
    }
    return 0;
}

static bool is_asked(const options *of, const char *task)
{
    bool found = of->tasks.count == 0;
    for (size_t i = 0; i < of->tasks.count; i++) {
        found = found || strcmp(of->tasks.at[i], task) == 0;
    }
    return found;
}

static int run_infer(running *of)
{
    mtlc_error error;
    char why[LINE], path[4096];
    int outcome = 0;
    if (of->options.out == NULL || of->options.inputs.count == 0) {
        return tell_line("infer needs --input FILE and --out FOLDER");
    }
    for (size_t i = 0; i < of->options.inputs.count && outcome == 0; i++) {
        outcome = bind_input(of, of->options.inputs.at[i]);
    }
    if (outcome != 0) {
        return outcome;
    }
    if (mtlc_plan_run(of->plan, &error) != MTLC_OK) {
        return tell(&error);
    }
    if (mkdir(of->options.out, 0777) != 0 && errno != EEXIST) {
        snprintf(why, sizeof why, "--out %s: %s", of->options.out, strerror(errno));
        return tell_line(why);
    }
    for (size_t i = 0; i < mtlc_session_task_count(of->session); i++) {
        const char *task = mtlc_session_task(of->session, i)->output.name;
        mtlc_view view;
        if (!is_asked(&of->options, task)) {
            continue;
        }
        if (mtlc_plan_output(of->plan, task, &view, &error) != MTLC_OK) {
            return tell(&error);
        }
        if (snprintf(path, sizeof path, "%s/%s.npy", of->options.out, task) >= (int)sizeof path) {
            return tell_line("--out: the path is too long");
        }
        if (!write_npy(path, &view, why)) {
            return tell_line(why);
        }
        printf("%s\n", path);
    }
    return 0;
}

/* -- bench -------------------------------------------------------------------------------------------------------- */

static int by_number(const void *one, const void *other)
{
    const double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static int bind_zeros(running *of)
{
    mtlc_error error;
    for (size_t i = 0; i < mtlc_session_input_count(of->session); i++) {
        const mtlc_tensor_info *one = mtlc_session_input(of->session, i);
        int64_t shape[MTLC_MAX_RANK];
        for (int j = 0; j < one->rank; j++) {
            const bool batch = one->shape[j] < 0 && strcmp(one->dimensions[j], "batch") == 0;
            shape[j] = one->shape[j] >= 0 ? one->shape[j] : batch ? of->options.batch : 1;
        }
        if (mtlc_plan_set_input(of->plan, one->name, one->dtype, shape, one->rank, NULL, 0, &error) != MTLC_OK) {
            return tell(&error);
        }
    }
    return 0;
}

static int run_bench(running *of)
{
    mtlc_error error;
    const int runs = of->options.runs;
    double *times = malloc((size_t)runs * sizeof *times), first = 0, cpu = 0;
    int outcome = times == NULL ? tell_line("no memory left") : bind_zeros(of);
    for (int i = -1; i < runs && outcome == 0; i++) {
        const double begun = now_ms();
        cpu = i == 0 ? cpu_ms() : cpu;
        if (mtlc_plan_run(of->plan, &error) != MTLC_OK) {
            outcome = tell(&error);
        } else if (i < 0) {
            first = now_ms() - begun;
        } else {
            times[i] = now_ms() - begun;
        }
    }
    if (outcome == 0) {
        qsort(times, (size_t)runs, sizeof *times, by_number);
        cpu = (cpu_ms() - cpu) / runs;
        const double median = times[runs / 2], p95 = times[(int)(0.95 * (runs - 1))];
        printf(of->options.json ? "{\"open_ms\": %.4f, \"open_cpu_ms\": %.4f, \"first_ms\": %.4f, \"min_ms\": %.4f, "
                                  "\"median_ms\": %.4f, \"p95_ms\": %.4f, \"cpu_ms\": %.4f, \"runs\": %d, "
                                  "\"programs\": %zu, \"peak_rss_kb\": %ld}\n"
                                : "open and load %.2f ms (%.2f of the processor), first run %.2f ms; then min %.3f, "
                                  "median %.3f, p95 %.3f ms, of the processor %.3f, in %d runs of %zu programs; at "
                                  "most %ld kB\n",
               of->opened_ms, of->opened_cpu_ms, first, times[0], median, p95, cpu, runs,
               mtlc_plan_program_count(of->plan), peak_kb());
    }
    free(times);
    return outcome;
}

int main(int count, char **arguments)
{
    static const struct {
        const char *verb;
        int (*run)(running *);
        bool session;
    } VERBS[] = {{"check", run_check, false}, {"info", run_info, true}, {"infer", run_infer, true},
                 {"bench", run_bench, true}};
    static running of;
    char why[LINE];
    if (count < 2 || strcmp(arguments[1], "--help") == 0) {
        fputs(USAGE, count < 2 ? stderr : stdout);
        return count < 2 ? EXIT_BAD_INPUT : 0;
    }
    if (strcmp(arguments[1], "--version") == 0) {
        puts(mtlc_version());
        return 0;
    }
    if (!read_options(count, arguments, &of.options, why, sizeof why)) {
        return tell_line(why);
    }
    int outcome = -1;
    for (size_t i = 0; i < sizeof VERBS / sizeof *VERBS; i++) {
        if (strcmp(of.options.verb, VERBS[i].verb) == 0) {
            outcome = VERBS[i].session ? open_session(&of) : 0;
            outcome = outcome == 0 ? VERBS[i].run(&of) : outcome;
        }
    }
    if (outcome < 0) {
        snprintf(why, sizeof why, "no verb %.40s: check, info, infer, bench", of.options.verb);
        outcome = tell_line(why);
    }
    mtlc_plan_free(of.plan);
    mtlc_configuration_free(of.configuration);
    mtlc_session_close(of.session);
    for (size_t i = 0; i < of.array_count; i++) {
        free(of.arrays[i].memory);
    }
    return outcome;
}
