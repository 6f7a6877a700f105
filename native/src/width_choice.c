/* Chooses an encoder and a width for every decoder, from a preference over the tasks and a budget. */
#include "width_choice.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TIE 1e-12
#define ROUNDING 1e-9
enum { MOST_SETS = 20000 };

/* Sets of decoder widths, as places among the widths of each task: `count` rows of a byte for each task. */
typedef struct width_sets {
    uint8_t *rows;
    size_t count;
} width_sets;

/* Encoders whose decoders have the same widths share their sets. */
typedef struct table {
    size_t *encoders;
    size_t count;
    width_sets sets;
} table;

/* -- preferences -------------------------------------------------------------------------------------------------- */

/* The sum, rounded once: Shewchuk's partial sums, as Python's math.fsum has them. */
static double exact_sum(check *of, const double *values, size_t count)
{
    double *parts = take(of, count + 1, sizeof *parts);
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        double x = values[i];
        size_t kept = 0;
        for (size_t j = 0; j < used; j++) {
            double y = parts[j];
            if (fabs(x) < fabs(y)) {
                const double swapped = x;
                x = y, y = swapped;
            }
            const double high = x + y, low = y - (high - x);
            if (low != 0) {
                parts[kept++] = low;
            }
            x = high;
        }
        parts[kept++] = x;
        used = kept;
    }
    double high = used > 0 ? parts[--used] : 0, low = 0;
    while (used > 0) {
        const double x = high, y = parts[--used];
        high = x + y;
        low = y - (high - x);
        if (low != 0) {
            break;
        }
    }
    /* Half to even: what is left below decides where `low` is just half a unit. */
    if (used > 0 && ((low < 0 && parts[used - 1] < 0) || (low > 0 && parts[used - 1] > 0))) {
        const double twice = low * 2, x = high + twice;
        if (twice == x - high) {
            high = x;
        }
    }
    return high;
}

void normalise_preference(check *of, double *preference, size_t task_count)
{
    double largest = 0;
    for (size_t i = 0; i < task_count; i++) {
        if (!(preference[i] >= 0 && preference[i] < HUGE_VAL)) {
            refuse(of, MTLC_PREFERENCE, "a preference must be a number, zero or more");
        }
        largest = preference[i] > largest ? preference[i] : largest;
    }
    if (largest <= 0) {
        refuse(of, MTLC_PREFERENCE, "every task has the preference 0: give one a number above 0");
    }
    for (size_t i = 0; i < task_count; i++) {
        preference[i] = preference[i] / largest; /* the sum alone could overflow */
    }
    const double total = exact_sum(of, preference, task_count);
    for (size_t i = 0; i < task_count; i++) {
        preference[i] = preference[i] / total;
    }
}

/* r_t by task; 0 where it is so small that a scale which reaches it means nothing. */
static double *make_ratios(check *of, const double *preference, size_t task_count)
{
    double *ratios = take(of, task_count, sizeof *ratios), largest = 0;
    for (size_t i = 0; i < task_count; i++) {
        largest = preference[i] > largest ? preference[i] : largest;
    }
    for (size_t i = 0; i < task_count; i++) {
        ratios[i] = preference[i] > TIE * largest ? preference[i] / largest : 0;
    }
    return ratios;
}

static int by_number(const void *one, const void *other)
{
    const double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

/* -- sets --------------------------------------------------------------------------------------------------------- */

/* The rank of each task by its ratio, from 0 up, -1 without a preference; the highest rank is given back. */
static int make_ranks(check *of, const double *ratios, size_t task_count, int *ranks)
{
    double *order = take(of, task_count, sizeof *order);
    size_t count = 0, different = 0;
    for (size_t i = 0; i < task_count; i++) {
        if (ratios[i] > 0) {
            order[count++] = ratios[i];
        }
    }
    qsort(order, count, sizeof *order, by_number);
    for (size_t i = 0; i < count; i++) {
        if (different == 0 || order[different - 1] != order[i]) {
            order[different++] = order[i];
        }
    }
    for (size_t i = 0; i < task_count; i++) {
        ranks[i] = -1;
        for (size_t j = 0; j < different; j++) {
            ranks[i] = ratios[i] > 0 && order[j] == ratios[i] ? (int)j : ranks[i];
        }
    }
    return (int)different - 1;
}

/* All sets that obey; false if they are more than MOST_SETS. They grow task by task, from the least preferred on. */
static bool make_obedient(check *of, const choice_encoder *like, size_t tasks, const double *ratios, width_sets *made)
{
    int *ranks = take(of, tasks, sizeof *ranks);
    const int top = make_ranks(of, ratios, tasks, ranks);
    uint8_t *rows = take(of, tasks, 1);
    double *below = take(of, 1, sizeof *below), *highest;
    size_t count = 1;
    for (int rank = 0; rank <= top; rank++, below = highest) {
        /* Tasks of one rank do not bind each other: the bound moves on only when all of them are placed. */
        highest = below;
        for (size_t task = 0; task < tasks; task++) {
            if (ranks[task] != rank) {
                continue;
            }
            const choice_decoder *options = like->decoders[task];
            const size_t widest = like->counts[task] - 1;
            size_t allowed = 0;
            for (size_t row = 0; row < count; row++) {
                for (size_t place = 0; place <= widest; place++) {
                    allowed += place == widest || options[place].width >= below[row];
                }
            }
            if (allowed > MOST_SETS) {
                return false;
            }
            uint8_t *new_rows = take(of, allowed * tasks, 1);
            double *new_below = take(of, allowed, sizeof *below), *new_highest = take(of, allowed, sizeof *below);
            size_t done = 0;
            for (size_t row = 0; row < count; row++) {
                for (size_t place = 0; place <= widest; place++) {
                    if (place != widest && options[place].width < below[row]) {
                        continue;
                    }
                    const double mine = place > 0 ? options[place].width : 0;
                    memcpy(new_rows + done * tasks, rows + row * tasks, tasks);
                    new_rows[done * tasks + task] = (uint8_t)place;
                    new_below[done] = below[row];
                    new_highest[done++] = mine > highest[row] ? mine : highest[row];
                }
            }
            rows = new_rows, below = new_below, highest = new_highest, count = allowed;
        }
    }
    *made = (width_sets){rows, count};
    return true;
}

/* The least of a task's widths that is `least` or more, the widest if none is. */
static uint8_t place_of(const choice_encoder *like, size_t task, double least)
{
    size_t place = 0;
    while (place + 1 < like->counts[task] && like->decoders[task][place].width < least) {
        place++;
    }
    return (uint8_t)place;
}

static void sort_rows(uint8_t *rows, size_t count, size_t tasks, uint8_t *spare)
{
    /* Merge sort: qsort has no room for how long a row is. */
    if (count < 2) {
        return;
    }
    const size_t half = count / 2;
    sort_rows(rows, half, tasks, spare);
    sort_rows(rows + half * tasks, count - half, tasks, spare);
    size_t left = 0, right = half;
    for (size_t i = 0; i < count; i++) {
        const bool take_left =
            left < half && (right == count || memcmp(rows + left * tasks, rows + right * tasks, tasks) <= 0);
        memcpy(spare + i * tasks, rows + (take_left ? left++ : right++) * tasks, tasks);
    }
    memcpy(rows, spare, count * tasks);
}

/* The sets in proportion to the preference, over all scales, and that of all narrowest; sorted, each once. */
static width_sets make_proportional(check *of, const choice_encoder *like, size_t tasks, const double *ratios)
{
    size_t room = 1, count = 0;
    for (size_t i = 0; i < tasks; i++) {
        room += like->counts[i];
    }
    double *steps = take(of, room + 1, sizeof *steps), last = 0;
    for (size_t i = 0; i < tasks; i++) {
        const size_t widest = like->counts[i] - 1;
        for (size_t j = 0; ratios[i] > 0 && j < widest; j++) {
            steps[count++] = like->decoders[i][j].width / ratios[i];
        }
        if (ratios[i] > 0 && like->decoders[i][widest].width / ratios[i] > last) {
            last = like->decoders[i][widest].width / ratios[i];
        }
    }
    qsort(steps, count, sizeof *steps, by_number);
    steps[count++] = last;
    uint8_t *rows = take(of, (count + 1) * tasks, 1), *spare = take(of, (count + 1) * tasks, 1);
    size_t made = 1; /* the first row is all narrowest */
    for (size_t i = 0; i < count; i++) {
        const double next = i + 1 < count ? steps[i + 1] : HUGE_VAL;
        if (!(next > steps[i] * (1 + ROUNDING))) {
            continue;
        }
        for (size_t task = 0; task < tasks; task++) {
            rows[made * tasks + task] = place_of(like, task, ratios[task] * steps[i] * (1 - ROUNDING));
        }
        made++;
    }
    sort_rows(rows, made, tasks, spare);
    size_t kept = 1;
    for (size_t i = 1; i < made; i++) {
        if (memcmp(rows + (kept - 1) * tasks, rows + i * tasks, tasks) != 0) {
            memmove(rows + kept++ * tasks, rows + i * tasks, tasks);
        }
    }
    return (width_sets){rows, kept};
}

/* -- tables ------------------------------------------------------------------------------------------------------- */

static bool is_alike(const choice_encoder *one, const choice_encoder *other, size_t tasks)
{
    for (size_t i = 0; i < tasks; i++) {
        if (one->counts[i] != other->counts[i]) {
            return false;
        }
        for (size_t j = 0; j < one->counts[i]; j++) {
            if (one->decoders[i][j].width != other->decoders[i][j].width) {
                return false;
            }
        }
    }
    return true;
}

static table *make_tables(check *of, const choice_encoder *encoders, size_t count, size_t tasks, size_t *table_count)
{
    table *tables = take(of, count, sizeof *tables);
    *table_count = 0;
    for (size_t i = 0; i < count; i++) {
        size_t place = 0;
        while (place < *table_count && !is_alike(encoders + i, encoders + tables[place].encoders[0], tasks)) {
            place++;
        }
        if (place == *table_count) {
            tables[place].encoders = take(of, count, sizeof(size_t));
            ++*table_count;
        }
        tables[place].encoders[tables[place].count++] = i;
    }
    return tables;
}

static double cost_of(const choice_encoder *of, const uint8_t *row, size_t tasks)
{
    double found = 0;
    for (size_t i = 0; i < tasks; i++) {
        found += of->decoders[i][row[i]].cost;
    }
    return of->cost + found;
}

static double gain_of(const choice_encoder *of, const uint8_t *row, size_t tasks, const double *preference)
{
    double found = 0;
    for (size_t i = 0; i < tasks; i++) {
        found += preference[i] * of->decoders[i][row[i]].gain;
    }
    return found;
}

/* Goes through all combinations in one order: table after table, set by set, encoder by encoder. */
typedef struct walk {
    const table *tables;
    size_t table_count, table, set, place;
} walk;

static bool next(walk *in, size_t tasks, size_t *encoder, const uint8_t **row)
{
    while (in->table < in->table_count && in->set == in->tables[in->table].sets.count) {
        in->table++, in->set = 0;
    }
    if (in->table == in->table_count) {
        return false;
    }
    const table *here = in->tables + in->table;
    *encoder = here->encoders[in->place];
    *row = here->sets.rows + in->set * tasks;
    if (++in->place == here->count) {
        in->place = 0, in->set++;
    }
    return true;
}

choice choose_widths(check *of, const choice_encoder *encoders, size_t encoder_count, size_t task_count,
                     const double *preference, double budget, double share)
{
    choice found = {.least = HUGE_VAL};
    const double *ratios = make_ratios(of, preference, task_count);
    size_t table_count, encoder;
    table *tables = make_tables(of, encoders, encoder_count, task_count, &table_count);
    for (size_t i = 0; i < table_count; i++) {
        const choice_encoder *like = encoders + tables[i].encoders[0];
        if (!make_obedient(of, like, task_count, ratios, &tables[i].sets)) {
            tables[i].sets = make_proportional(of, like, task_count, ratios);
        }
    }
    for (size_t i = 0; i < encoder_count; i++) {
        double all = 0;
        for (size_t j = 0; j < task_count; j++) {
            all += encoders[i].decoders[j][encoders[i].counts[j] - 1].cost;
        }
        found.widest = encoders[i].cost + all > found.widest ? encoders[i].cost + all : found.widest;
    }
    budget = share > 0 ? share * found.widest : budget;
    const uint8_t *row;
    double most = -HUGE_VAL;
    for (walk in = {tables, table_count, 0, 0, 0}; next(&in, task_count, &encoder, &row);) {
        const double cost = cost_of(encoders + encoder, row, task_count);
        const double gain = gain_of(encoders + encoder, row, task_count, preference);
        found.least = cost < found.least ? cost : found.least;
        most = cost <= budget && gain > most ? gain : most;
    }
    const uint8_t *best = NULL;
    for (walk in = {tables, table_count, 0, 0, 0}; next(&in, task_count, &encoder, &row);) {
        const double cost = cost_of(encoders + encoder, row, task_count);
        const double gain = gain_of(encoders + encoder, row, task_count, preference);
        if (cost <= budget && gain >= most - TIE && (best == NULL || cost < found.cost)) {
            best = row;
            found.encoder = encoder, found.cost = cost, found.gain = gain;
        }
    }
    if (best != NULL) {
        found.found = true;
        found.places = take(of, task_count, sizeof *found.places);
        for (size_t i = 0; i < task_count; i++) {
            found.places[i] = best[i];
        }
    }
    return found;
}
