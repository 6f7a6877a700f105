/* Checks every choice of widths and every named configuration of a manifest. */
#include "manifest.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { INSIDE = 160 };

/* The layers of tensors that are there, the innermost first. */
typedef struct layers {
    size_t *decoded, *encoded, *inputs;
} layers;

static void clear(const manifest *in, const texts *programs, size_t *made)
{
    for (size_t i = 0; i < programs->count; i++) {
        const program *one = in->programs + names_find(&in->program_names, programs->at[i]);
        for (size_t j = 0; j < one->outputs.count; j++) {
            made[one->output_ids[j]] = 0;
        }
    }
}

/* Programs of widths: each is there, once, and says its MACs. `seen` has a mark for each program. */
static void find_programs(check *of, const manifest *in, const texts *programs, size_t *seen, size_t mark,
                          const char *inside)
{
    for (size_t i = 0; i < programs->count; i++) {
        const long place = names_find(&in->program_names, programs->at[i]);
        if (place == NO_NAME) {
            refuse(of, MTLC_REFERENCE, "manifest.json: %sthere is no program %s", inside, shown(programs->at[i]));
        }
        if (seen[place] == mark) {
            refuse(of, MTLC_TWICE, "manifest.json: %sprogram %s is listed twice", inside, shown(programs->at[i]));
        }
        if (in->programs[place].macs < 0) {
            refuse(of, MTLC_KEY_MISSING, "manifest.json: %sprogram %s has no macs", inside, shown(programs->at[i]));
        }
        seen[place] = mark;
    }
}

/* An entry for each task, and no other. Gives for each task the entry's place. */
static size_t *by_task(check *of, const manifest *in, const text *given, size_t count, const char *what)
{
    if (count < in->task_count) {
        refuse(of, MTLC_REFERENCE, "manifest.json: %s: a task is missing", what);
    }
    size_t *places = take(of, in->task_count, sizeof *places), found = 0;
    bool foreign = false;
    for (size_t i = 0; i < count; i++) {
        const long task = names_find(&in->task_names, given[i]);
        if (task == NO_NAME) {
            foreign = true;
        } else {
            places[task] = i;
            found++;
        }
    }
    if (found < in->task_count || foreign) {
        refuse(of, MTLC_REFERENCE, "manifest.json: %s: a task is %s", what,
               found < in->task_count ? "missing" : "named that is not there");
    }
    return places;
}

static void check_decoder(flow *by, const encoder *of, size_t task, const decoder *point, const layers *there,
                          size_t *seen, size_t mark, size_t *makers, size_t makers_mark)
{
    const manifest *in = by->in;
    const double reference = in->widths->reference_by_task[task];
    char inside[INSIDE];
    snprintf(inside, sizeof inside, "widths: encoder %s: %.60s at %g: ", shown(of->name), in->tasks[task].name.data,
             point->width);
    if (!isfinite((point->metric - reference) / reference)) {
        refuse(by->of, MTLC_WIDTHS, "manifest.json: %smetric %g is out of proportion to its reference", inside,
               point->metric);
    }
    find_programs(by->of, in, &point->programs, seen, mark, inside);
    for (size_t i = 0; i < point->programs.count; i++) {
        const program *one = in->programs + names_find(&in->program_names, point->programs.at[i]);
        for (size_t t = 0; t < in->mask_words; t++) {
            if (one->task_bits[t] != (t == task / 64 ? (uint64_t)1 << task % 64 : 0)) {
                refuse(by->of, MTLC_WIDTHS, "manifest.json: %sprogram %s is not one of the task alone", inside,
                       shown(one->name));
            }
        }
    }
    size_t *places[] = {there->decoded, there->encoded, there->inputs};
    by->places = places;
    by->place_count = 3;
    for (size_t i = 0; i < point->programs.count; i++) {
        flow_program(by, (size_t)names_find(&in->program_names, point->programs.at[i]), there->decoded, inside);
    }
    const size_t output = in->task_output_ids[task];
    const size_t maker = there->decoded[output] ? there->decoded[output] : there->encoded[output];
    if (maker < OF_PROGRAM || !has_task(in->programs[maker - OF_PROGRAM].task_bits, task)) {
        refuse(by->of, MTLC_FLOW, "manifest.json: %sno program makes its output", inside);
    }
    for (size_t i = 0; i < point->programs.count; i++) {
        const program *one = in->programs + names_find(&in->program_names, point->programs.at[i]);
        for (size_t j = 0; j < one->outputs.count; j++) {
            size_t *made_by = makers + one->output_ids[j];
            if (*made_by >= makers_mark && *made_by != makers_mark + task) {
                refuse(by->of, MTLC_WIDTHS, "manifest.json: %stensor %s is also made by another task's decoder", inside,
                       shown(one->outputs.at[j]));
            }
            *made_by = makers_mark + task;
        }
    }
    clear(in, &point->programs, there->decoded);
}

static void check_encoders(flow *by, const layers *there)
{
    check *of = by->of;
    manifest *in = by->in;
    widths *all = in->widths;
    names seen_names = {0};
    size_t *seen = take(of, in->program_count, sizeof *seen), mark = 0;
    size_t *makers = take(of, in->tensors.count, sizeof *makers), makers_mark = 1;
    for (size_t e = 0; e < all->encoder_count; e++, makers_mark += in->task_count) {
        encoder *one = all->encoders + e;
        char inside[INSIDE];
        bool added;
        snprintf(inside, sizeof inside, "widths: encoder %s: ", shown(one->name));
        names_add(of, &seen_names, one->name, &added);
        if (!added) {
            refuse(of, MTLC_TWICE, "manifest.json: %sit is listed twice", inside);
        }
        if (one->width_count != all->stages.count) {
            refuse(of, MTLC_WIDTHS, "manifest.json: %s%zu widths for the %zu stages", inside, one->width_count,
                   all->stages.count);
        }
        text *tasks = take(of, one->decoder_count, sizeof *tasks);
        for (size_t i = 0; i < one->decoder_count; i++) {
            tasks[i] = one->decoders[i].task;
        }
        const size_t *places = by_task(of, in, tasks, one->decoder_count, inside);
        one->by_task = take(of, in->task_count, sizeof *one->by_task);
        for (size_t i = 0; i < in->task_count; i++) {
            one->by_task[i] = one->decoders + places[i];
        }
        find_programs(of, in, &one->programs, seen, ++mark, inside);
        size_t *layers_of_encoder[] = {there->encoded, there->inputs};
        by->places = layers_of_encoder;
        by->place_count = 2;
        for (size_t i = 0; i < one->programs.count; i++) {
            flow_program(by, (size_t)names_find(&in->program_names, one->programs.at[i]), there->encoded, inside);
        }
        for (size_t i = 0; i < one->decoder_count; i++) {
            const size_t task = (size_t)names_find(&in->task_names, one->decoders[i].task);
            for (size_t j = 0; j < one->decoders[i].count; j++) {
                check_decoder(by, one, task, one->decoders[i].at + j, there, seen, ++mark, makers, makers_mark);
            }
        }
        clear(in, &one->programs, there->encoded);
    }
}

static void check_tables(check *of, manifest *in)
{
    widths *all = in->widths;
    const size_t *reference = by_task(of, in, all->reference.names, all->reference.count, "widths.reference");
    const size_t *better = by_task(of, in, all->better_names, all->better_count, "widths.higher_is_better");
    all->reference_by_task = take(of, in->task_count, sizeof *all->reference_by_task);
    all->higher_by_task = take(of, in->task_count, sizeof *all->higher_by_task);
    for (size_t i = 0; i < in->task_count; i++) {
        all->reference_by_task[i] = all->reference.at[reference[i]];
        all->higher_by_task[i] = all->better[better[i]];
    }
    for (size_t i = 0; i < in->task_count; i++) {
        if (all->reference_by_task[i] == 0) {
            refuse(of, MTLC_WIDTHS, "manifest.json: widths.reference.%s is 0: a relative change is undefined",
                   in->tasks[i].name.data);
        }
    }
    if (all->encoder_count == 0) {
        refuse(of, MTLC_KEY_VALUE, "manifest.json: widths.encoders is empty");
    }
}

/* The programs of a named configuration are those of the encoder and the decoders that it names. */
static void check_point(check *of, const manifest *in, const names *encoders, const configuration *one, size_t *seen,
                        size_t mark)
{
    const long place = names_find(encoders, one->encoder);
    if (place == NO_NAME) {
        refuse(of, in->widths == NULL ? MTLC_WIDTHS : MTLC_REFERENCE,
               "manifest.json: configurations: %s: there is no encoder %s", shown(one->name), shown(one->encoder));
    }
    const encoder *found = in->widths->encoders + place;
    by_task(of, in, one->decoders.names, one->decoders.count, "configurations: decoders");
    size_t named = 0;
    for (size_t i = 0; i < found->programs.count; i++) {
        seen[names_find(&in->program_names, found->programs.at[i])] = mark;
    }
    named = found->programs.count;
    for (size_t i = 0; i < one->decoders.count; i++) {
        const decoders *row = found->by_task[names_find(&in->task_names, one->decoders.names[i])];
        const decoder *point = NULL;
        for (size_t j = 0; j < row->count; j++) {
            if (row->at[j].width == one->decoders.at[i]) {
                point = row->at + j;
            }
        }
        if (point == NULL) {
            refuse(of, MTLC_REFERENCE, "manifest.json: configurations: %s: no decoder of %s at %g", shown(one->name),
                   shown(one->decoders.names[i]), one->decoders.at[i]);
        }
        for (size_t j = 0; j < point->programs.count; j++) {
            size_t *mine = seen + names_find(&in->program_names, point->programs.at[j]);
            named += *mine != mark;
            *mine = mark;
        }
    }
    bool same = true;
    for (size_t i = 0; i < one->programs.count; i++) {
        size_t *mine = seen + names_find(&in->program_names, one->programs.at[i]);
        same = same && (*mine == mark || *mine == mark + 1);
        named -= *mine == mark;
        *mine = mark + 1;
    }
    if (!same || named != 0) {
        refuse(of, MTLC_WIDTHS, "manifest.json: configurations: %s: programs are not those of its encoder and decoders",
               shown(one->name));
    }
}

static void check_configurations(flow *by, const layers *there)
{
    check *of = by->of;
    const manifest *in = by->in;
    names seen_names = {0}, encoders = {0};
    size_t *seen = take(of, in->program_count, sizeof *seen);
    for (size_t i = 0; in->widths != NULL && i < in->widths->encoder_count; i++) {
        names_add(of, &encoders, in->widths->encoders[i].name, NULL);
    }
    for (size_t i = 0; i < in->configuration_count; i++) {
        const configuration *one = in->configurations + i;
        bool added;
        for (size_t j = 0; j < one->programs.count; j++) {
            if (names_find(&in->program_names, one->programs.at[j]) == NO_NAME) {
                refuse(of, MTLC_REFERENCE, "manifest.json: configurations: %s names a program that is not there",
                       shown(one->name));
            }
        }
        names_add(of, &seen_names, one->name, &added);
        if (in->widths != NULL) {
            char inside[INSIDE];
            size_t *places[] = {there->encoded, there->inputs};
            snprintf(inside, sizeof inside, "configurations: %s: ", shown(one->name));
            by->places = places;
            by->place_count = 2;
            for (size_t j = 0; j < one->programs.count; j++) {
                flow_program(by, (size_t)names_find(&in->program_names, one->programs.at[j]), there->encoded, inside);
            }
            check_outputs(by, there->encoded, inside);
            clear(in, &one->programs, there->encoded);
            if (!added) {
                refuse(of, MTLC_TWICE, "manifest.json: configurations: %s is listed twice", shown(one->name));
            }
        }
        if (one->has_encoder) {
            check_point(of, in, &encoders, one, seen, 2 * i + 1);
        }
    }
    if (names_find(&seen_names, TEXT("default")) == NO_NAME) {
        refuse(of, MTLC_KEY_MISSING, "manifest.json: configurations: there is no 'default'");
    }
}

void check_widths(check *of, manifest *in)
{
    const size_t count = in->tensors.count;
    layers there = {take(of, count, sizeof(size_t)), take(of, count, sizeof(size_t)), take(of, count, sizeof(size_t))};
    flow by = {of, in, 0, most_work(in), NULL, 0};
    for (size_t i = 0; i < in->input_count; i++) {
        there.inputs[in->input_ids[i]] = OF_INPUT;
    }
    if (in->widths == NULL) {
        size_t *places[] = {there.encoded, there.inputs};
        by.places = places;
        by.place_count = 2;
        for (size_t i = 0; i < in->program_count; i++) {
            flow_program(&by, i, there.encoded, "");
        }
        check_outputs(&by, there.encoded, "");
        for (size_t i = 0; i < count; i++) {
            there.encoded[i] = 0;
        }
    } else {
        check_tables(of, in);
        check_encoders(&by, &there);
    }
    check_configurations(&by, &there);
}
