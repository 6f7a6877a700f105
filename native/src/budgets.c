/* Makes the configuration that a budget and a preference choose. */
#include "decimal.h"
#include "session.h"
#include "width_choice.h"

#include <math.h>
#include <string.h>

/* What a run may cost: MACs, or a share (0 to 1) of those of the widest configuration. */
typedef struct amount {
    double macs, share;
} amount;

/* What is asked of a session, and what is found. */
typedef struct asking {
    check of;
    arena memory;
    mtlc_session *session;
    const char *budget;
    const mtlc_preference *preferences;
    size_t preference_count;
    const char *const *tasks;
    size_t task_count;
    mtlc_configuration **made;
} asking;

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1C && c <= 0x1F);
}

static const char *skip_space(const char *at)
{
    while (is_space(*at)) {
        at++;
    }
    return at;
}

static void NEVER_RETURNS no_amount(check *of, const char *budget)
{
    refuse(of, MTLC_BUDGET, "budget = %s: write \"40%%\", \"25MMACs\" or \"25000000\"", shown(text_of(budget)));
}

/* The end of a number as people write it, such as "1.5e6"; `at` itself where there is none. */
static const char *number_end(const char *at)
{
    const char *end = at + strspn(at, "0123456789.");
    if (end > at && *end == 'e') {
        const char *digits = end + 1 + (end[1] == '+' || end[1] == '-');
        const size_t count = strspn(digits, "0123456789");
        end = count > 0 ? digits + count : end;
    }
    return end;
}

static bool is_macs(const char *unit, size_t length)
{
    static const char small[] = "macs";
    for (size_t i = 0; i < length; i++) {
        const char c = unit[i] >= 'A' && unit[i] <= 'Z' ? (char)(unit[i] + 32) : unit[i];
        if (length != 4 || c != small[i]) {
            return false;
        }
    }
    return true;
}

static amount read_budget(check *of, const char *budget)
{
    const char *at = skip_space(budget), *end = number_end(at);
    double number = 0, step = 1;
    size_t points = 0, digits = 0;
    for (const char *c = at; c < end && *c != 'e'; c++) {
        points += *c == '.';
        digits += *c != '.';
    }
    if (points > 1 || digits == 0 || !read_decimal(at, (size_t)(end - at), &number)) {
        no_amount(of, budget);
    }
    end = skip_space(end);
    char prefix = '\0';
    if (*end != '\0' && strchr("kKMG", *end) != NULL) {
        prefix = *end++;
    }
    end = skip_space(end);
    const char *unit = end;
    size_t length = 0;
    while ((unit[length] >= 'a' && unit[length] <= 'z') || (unit[length] >= 'A' && unit[length] <= 'Z')) {
        length++;
    }
    length = length == 0 && *unit == '%' ? 1 : length;
    if (*skip_space(unit + length) != '\0') {
        no_amount(of, budget);
    }
    if (*unit == '%') {
        if (prefix != '\0' || !(number > 0 && number <= 100)) {
            refuse(of, MTLC_BUDGET, "budget = %s: a share is above 0%% and at most 100%%", shown(text_of(budget)));
        }
        return (amount){0, number / 100};
    }
    if (prefix == '\0' && ((length == 2 && memcmp(unit, "ms", 2) == 0) || (length == 1 && *unit == 's'))) {
        refuse(of, MTLC_UNSUPPORTED, "budget = %s: this library does not measure programs: give MACs",
               shown(text_of(budget)));
    }
    if (prefix == 'K' || !is_macs(unit, length)) {
        no_amount(of, budget);
    }
    step = prefix == 'k' ? 1e3 : prefix == 'M' ? 1e6 : prefix == 'G' ? 1e9 : 1;
    number *= step;
    if (!(number > 1 && number < HUGE_VAL)) {
        refuse(of, MTLC_BUDGET, "budget = %s: must be more than one MAC", shown(text_of(budget)));
    }
    return (amount){number, 0};
}

static double cost_of(const manifest *in, const texts *programs, const uint64_t *asked)
{
    uint64_t found = 0; /* MACs are below 2^62 each */
    for (size_t i = 0; i < programs->count; i++) {
        const program *one = in->programs + names_find(&in->program_names, programs->at[i]);
        if (shares_task(one->task_bits, asked, in->mask_words)) {
            found = (uint64_t)one->macs > UINT64_MAX - found ? UINT64_MAX : found + (uint64_t)one->macs;
        }
    }
    return (double)found;
}

/* The relative change of a metric against the widest network's; above zero is better. */
static double gain_of(const widths *in, size_t task, double metric)
{
    const double change = (metric - in->reference_by_task[task]) / fabs(in->reference_by_task[task]);
    return in->higher_by_task[task] ? change : -change;
}

static choice_encoder *make_encoders(asking *by, const size_t *tasks, size_t task_count, const uint64_t *asked)
{
    const manifest *in = by->session->bundle.manifest;
    choice_encoder *made = take(&by->of, in->widths->encoder_count, sizeof *made);
    for (size_t e = 0; e < in->widths->encoder_count; e++) {
        const encoder *of = in->widths->encoders + e;
        made[e].cost = cost_of(in, &of->programs, asked);
        made[e].decoders = take(&by->of, task_count, sizeof *made[e].decoders);
        made[e].counts = take(&by->of, task_count, sizeof *made[e].counts);
        for (size_t i = 0; i < task_count; i++) {
            const decoders *row = of->by_task[tasks[i]];
            made[e].counts[i] = row->count;
            made[e].decoders[i] = take(&by->of, row->count, sizeof **made[e].decoders);
            for (size_t j = 0; j < row->count; j++) {
                made[e].decoders[i][j] = (choice_decoder){row->at[j].width, cost_of(in, &row->at[j].programs, asked),
                                                          gain_of(in->widths, tasks[i], row->at[j].metric)};
            }
        }
    }
    return made;
}

static double *read_preferences(asking *by, const size_t *tasks, size_t task_count)
{
    const manifest *in = by->session->bundle.manifest;
    double *made = take(&by->of, task_count, sizeof *made);
    for (size_t i = 0; by->preference_count == 0 && i < task_count; i++) {
        made[i] = 1.0 / (double)task_count;
    }
    if (by->preference_count == 0) {
        return made;
    }
    bool *given = take(&by->of, task_count, sizeof *given);
    for (size_t i = 0; i < by->preference_count; i++) {
        const char *name = by->preferences[i].task;
        size_t place = 0;
        while (name != NULL && place < task_count && !text_equal(in->tasks[tasks[place]].name, text_of(name))) {
            place++;
        }
        if (name == NULL || place == task_count || given[place]) {
            refuse(&by->of, MTLC_PREFERENCE, "prefer: %s is %s", name == NULL ? "NULL" : shown(text_of(name)),
                   name != NULL && place < task_count ? "given twice" : "not one of the tasks that run");
        }
        given[place] = true;
        made[place] = by->preferences[i].value;
    }
    normalise_preference(&by->of, made, task_count);
    return made;
}

static void choose(asking *by)
{
    const manifest *in = by->session->bundle.manifest;
    if (in->widths == NULL) {
        refuse(&by->of, MTLC_CONFIGURATION, "the bundle runs at one width only: make one with several by `mtlc slim`");
    }
    uint64_t *asked = take(&by->of, in->mask_words, sizeof *asked);
    size_t *tasks = take(&by->of, in->task_count, sizeof *tasks), task_count = 0;
    mtlc_error why;
    if (read_tasks(by->session, by->tasks, by->task_count, asked, &why) != MTLC_OK) {
        refuse(&by->of, why.code, "%s", why.message);
    }
    for (size_t i = 0; i < in->task_count; i++) {
        if (has_task(asked, i)) {
            tasks[task_count++] = i;
        }
    }
    const amount limit = read_budget(&by->of, by->budget);
    const choice_encoder *encoders = make_encoders(by, tasks, task_count, asked);
    const double *preference = read_preferences(by, tasks, task_count);
    const choice found = choose_widths(&by->of, encoders, in->widths->encoder_count, task_count, preference, limit.macs,
                                       limit.share);
    if (!found.found) {
        refuse(&by->of, MTLC_BUDGET,
               "budget %s is under the least that can run: %.4g MACs (%.0f %% of the widest, %.4g MACs); raise the "
               "budget or run fewer tasks", by->budget, found.least,
               found.widest > 0 ? 100 * found.least / found.widest : 0, found.widest);
    }
    const encoder *of = in->widths->encoders + found.encoder;
    const decoder **decoders = take(&by->of, in->task_count, sizeof *decoders);
    for (size_t i = 0; i < in->task_count; i++) {
        decoders[i] = of->by_task[i]->at; /* what is not asked for has its narrowest */
    }
    for (size_t i = 0; i < task_count; i++) {
        decoders[tasks[i]] = of->by_task[tasks[i]]->at + found.places[i];
    }
    if (make_configuration(by->session, NULL, of, decoders, NULL, 0, asked, by->made, &why) != MTLC_OK) {
        refuse(&by->of, why.code, "%s", why.message);
    }
}

static bool chooses(asking *by)
{
    if (setjmp(by->of.end) != 0) {
        return false;
    }
    choose(by);
    return true;
}

mtlc_code mtlc_configuration_within(mtlc_session *session, const char *budget, const mtlc_preference *preferences,
                                    size_t preference_count, const char *const *tasks, size_t task_count,
                                    mtlc_configuration **configuration, mtlc_error *error)
{
    if (session == NULL || budget == NULL || configuration == NULL || (preferences == NULL && preference_count > 0)) {
        return fail(error, MTLC_ARGUMENT, "the session, the budget or the place for the configuration is NULL");
    }
    *configuration = NULL;
    asking by = {.session = session, .budget = budget, .preferences = preferences, .preference_count = preference_count,
                 .tasks = tasks, .task_count = task_count, .made = configuration};
    by.of.memory = &by.memory;
    const bool good = chooses(&by);
    arena_free(&by.memory);
    return good ? MTLC_OK : fail(error, by.of.error.code, "%s: %s", session->bundle.path.data, by.of.error.message);
}
