/* Reads the command line of mtlc-run. */
#include "options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char USAGE[] =
    "mtlc-run VERB BUNDLE [options]\n"
    "\n"
    "  check   is the bundle whole and safe to open? No engine is needed\n"
    "  info    tasks, inputs, configurations\n"
    "  infer   --input [NAME=]FILE (.npy, .ppm, .pgm, or raw numbers), --out FOLDER: writes TASK.npy\n"
    "  bench   latency of the tasks on zeros: --runs N (100), --batch N (1)\n"
    "\n"
    "  --tasks A,B             only these tasks (default: all)\n"
    "  --configuration NAME    a named configuration\n"
    "  --budget AMOUNT         the best widths within \"40%\" or \"25MMACs\"; --prefer A=3,B=1 weighs the tasks\n"
    "  --threads N             of each program\n"
    "  --engine FILE           onnxruntime's shared library (or $MTLC_ONNXRUNTIME)\n"
    "  --json                  print JSON\n"
    "\n"
    "Exit codes: 0, 2 for bad input, 5 where the engine or the processor cannot.\n";

static bool add(listed *to, const char *one)
{
    if (to->count == MOST_LISTED) {
        return false;
    }
    to->at[to->count++] = one;
    return true;
}

static bool split(listed *to, char *names)
{
    char *save = NULL;
    bool good = true;
    for (char *one = strtok_r(names, ",", &save); one != NULL && good; one = strtok_r(NULL, ",", &save)) {
        good = add(to, one);
    }
    return good && to->count > 0;
}

static bool read_number(const char *from, long most, long *number)
{
    char *end;
    errno = 0;
    *number = strtol(from, &end, 10);
    return end != from && *end == '\0' && errno == 0 && *number >= 1 && *number <= most;
}

static bool read_preferences(options *made, char *from)
{
    char *save = NULL;
    for (char *one = strtok_r(from, ",", &save); one != NULL; one = strtok_r(NULL, ",", &save)) {
        char *equals = strchr(one, '='), *end;
        if (equals == NULL || made->preference_count == MOST_LISTED) {
            return false;
        }
        *equals = '\0';
        made->preferences[made->preference_count++] = (mtlc_preference){one, strtod(equals + 1, &end)};
        if (end == equals + 1 || *end != '\0') {
            return false;
        }
    }
    return made->preference_count > 0;
}

/* Takes one option with its value; false where the value is not one that it has, or there is no such option. */
static bool take_option(options *made, const char *name, char *value)
{
    long number = 0;
    if (strcmp(name, "--tasks") == 0) {
        return split(&made->tasks, value);
    }
    if (strcmp(name, "--input") == 0) {
        return add(&made->inputs, value);
    }
    if (strcmp(name, "--prefer") == 0) {
        return read_preferences(made, value);
    }
    const struct {
        const char *name;
        const char **into;
    } texts[] = {{"--configuration", &made->configuration}, {"--budget", &made->budget}, {"--engine", &made->engine},
                 {"--out", &made->out}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (strcmp(name, texts[i].name) == 0) {
            *texts[i].into = value;
            return true;
        }
    }
    if (strcmp(name, "--threads") == 0 && read_number(value, 1024, &number)) {
        made->threads = (int)number;
        return true;
    }
    if (strcmp(name, "--runs") == 0 && read_number(value, 100000000, &number)) {
        made->runs = (int)number;
        return true;
    }
    return strcmp(name, "--batch") == 0 && read_number(value, 1000000, &made->batch);
}

bool read_options(int count, char **arguments, options *made, char *why, size_t room)
{
    memset(made, 0, sizeof *made);
    made->runs = 100;
    made->batch = 1;
    for (int i = 1; i < count; i++) {
        char *one = arguments[i];
        if (strcmp(one, "--json") == 0) {
            made->json = true;
        } else if (strncmp(one, "--", 2) == 0) {
            if (i + 1 == count) {
                snprintf(why, room, "%s: there is no such option, or its value is missing", one);
                return false;
            }
            char *value = arguments[++i];
            if (!take_option(made, one, value)) {
                snprintf(why, room, "%s %s: there is no such option, or it has no such value", one, value);
                return false;
            }
        } else if (made->verb == NULL) {
            made->verb = one;
        } else if (made->bundle == NULL) {
            made->bundle = one;
        } else {
            snprintf(why, room, "%s: one bundle at a time", one);
            return false;
        }
    }
    if (made->verb == NULL || made->bundle == NULL) {
        snprintf(why, room, "give a verb and a bundle: mtlc-run info BUNDLE");
        return false;
    }
    if (made->configuration != NULL && made->budget != NULL) {
        snprintf(why, room, "--budget chooses widths, which --configuration has: give one of them");
        return false;
    }
    if (made->preference_count > 0 && made->budget == NULL) {
        snprintf(why, room, "--prefer weighs what --budget chooses: give a budget");
        return false;
    }
    return true;
}
