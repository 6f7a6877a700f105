/* Checks that a manifest's programs fit together: all that a bundle may be asked to run computes its tasks. */
#include "manifest.h"

#include <string.h>

bool has_task(const uint64_t *bits, size_t task)
{
    return bits[task / 64] >> task % 64 & 1;
}

static bool is_within(const uint64_t *part, const uint64_t *whole, size_t words)
{
    for (size_t i = 0; i < words; i++) {
        if (part[i] & ~whole[i]) {
            return false;
        }
    }
    return true;
}

size_t most_work(const manifest *in)
{
    size_t named = 0, listed = 0;
    for (size_t i = 0; i < in->configuration_count; i++) {
        named += in->configurations[i].programs.count + in->configurations[i].decoders.count;
    }
    for (size_t i = 0; in->widths != NULL && i < in->widths->encoder_count; i++) {
        const encoder *one = in->widths->encoders + i;
        named += one->programs.count;
        for (size_t j = 0; j < one->decoder_count; j++) {
            for (size_t k = 0; k < one->decoders[j].count; k++) {
                named += one->decoders[j].at[k].programs.count;
            }
        }
    }
    for (size_t i = 0; i < in->program_count; i++) {
        listed += 1 + in->programs[i].inputs.count + in->programs[i].outputs.count;
    }
    return FREE_TENSORS + TENSORS_A_NAME * named + TENSORS_AGAIN * (listed + in->task_count);
}

void count_work(flow *of, size_t tensors)
{
    of->work += tensors;
    if (of->work > of->most) {
        refuse(of->of, MTLC_LIMIT, "manifest.json: widths and configurations name large programs too often");
    }
}

/* How a tensor is there: 0 if it is not, else by the innermost layer. */
static size_t there(const flow *of, size_t tensor)
{
    for (size_t i = 0; i < of->place_count; i++) {
        if (of->places[i][tensor] != 0) {
            return of->places[i][tensor];
        }
    }
    return 0;
}

void flow_program(flow *of, size_t place, size_t *made, const char *inside)
{
    const program *one = of->in->programs + place;
    count_work(of, 1 + one->inputs.count + one->outputs.count);
    for (size_t i = 0; i < one->inputs.count; i++) {
        const size_t maker = there(of, one->input_ids[i]);
        if (maker == 0) {
            refuse(of->of, MTLC_FLOW, "manifest.json: %sprogram %s: no earlier program makes its input %s", inside,
                   shown(one->name), shown(one->inputs.at[i]));
        }
        if (maker >= OF_PROGRAM &&
            !is_within(one->task_bits, of->in->programs[maker - OF_PROGRAM].task_bits, of->in->mask_words)) {
            refuse(of->of, MTLC_FLOW, "manifest.json: %sprogram %s: its input %s is not made for all of its tasks",
                   inside, shown(one->name), shown(one->inputs.at[i]));
        }
    }
    for (size_t i = 0; i < one->outputs.count; i++) {
        if (there(of, one->output_ids[i]) != 0) {
            refuse(of->of, MTLC_FLOW, "manifest.json: %sprogram %s: its output %s is made twice", inside,
                   shown(one->name), shown(one->outputs.at[i]));
        }
        made[one->output_ids[i]] = place + OF_PROGRAM;
    }
}

void check_outputs(flow *of, const size_t *made, const char *inside)
{
    count_work(of, of->in->task_count);
    for (size_t i = 0; i < of->in->task_count; i++) {
        const size_t maker = made[of->in->task_output_ids[i]];
        if (maker < OF_PROGRAM || !has_task(of->in->programs[maker - OF_PROGRAM].task_bits, i)) {
            refuse(of->of, MTLC_FLOW, "manifest.json: %stasks.%s.output: no program of the task makes %s", inside,
                   of->in->tasks[i].name.data, shown(of->in->tasks[i].output.name));
        }
    }
}

static void check_experts(check *of, const program *one, const manifest *in)
{
    const experts *layer = one->experts;
    if (one->inputs.count != 3 || one->outputs.count != 1) {
        refuse(of, MTLC_EXPERTS, "manifest.json: program %s: an expert layer reads three tensors and writes one",
               shown(one->name));
    }
    const long file = names_find(&in->file_names, layer->file);
    if (file == NO_NAME) {
        refuse(of, MTLC_REFERENCE, "manifest.json: program %s: its expert file is not in files", shown(one->name));
    }
    const int64_t bytes = in->files[file].bytes;
    if (layer->offset > bytes || layer->count > (bytes - layer->offset) / layer->stride) {
        refuse(of, MTLC_EXPERTS, "manifest.json: program %s: its experts lie beyond the end of %s", shown(one->name),
               shown(layer->file));
    }
}

static void check_program(check *of, manifest *in, size_t place)
{
    program *one = in->programs + place;
    bool added;
    names_add(of, &in->program_names, one->name, &added);
    if (!added) {
        refuse(of, MTLC_TWICE, "manifest.json: program %s is listed twice", shown(one->name));
    }
    if (names_find(&in->file_names, one->file) == NO_NAME) {
        refuse(of, MTLC_REFERENCE, "manifest.json: program %s: its file %s is not in files", shown(one->name),
               shown(one->file));
    }
    if (!text_ends(one->file, ".onnx")) {
        refuse(of, MTLC_FILE_NAME, "manifest.json: program %s: its file %s must end in .onnx", shown(one->name),
               shown(one->file));
    }
    one->task_bits = take(of, in->mask_words, sizeof *one->task_bits);
    bool good = one->tasks.count > 0;
    for (size_t i = 0; good && i < one->tasks.count; i++) {
        const long task = names_find(&in->task_names, one->tasks.at[i]);
        good = task != NO_NAME;
        if (good) {
            one->task_bits[task / 64] |= (uint64_t)1 << task % 64;
        }
    }
    if (!good) {
        refuse(of, MTLC_REFERENCE, "manifest.json: program %s: tasks must name one or more of the bundle's",
               shown(one->name));
    }
    one->input_ids = take(of, one->inputs.count, sizeof *one->input_ids);
    one->output_ids = take(of, one->outputs.count, sizeof *one->output_ids);
    names own = {0};
    for (size_t i = 0; i < one->inputs.count; i++) {
        one->input_ids[i] = names_add(of, &in->tensors, one->inputs.at[i], NULL);
        names_add(of, &own, one->inputs.at[i], NULL);
    }
    for (size_t i = 0; i < one->outputs.count; i++) {
        one->output_ids[i] = names_add(of, &in->tensors, one->outputs.at[i], NULL);
        names_add(of, &own, one->outputs.at[i], NULL);
    }
    for (size_t i = 0; i < one->renamed_count; i++) {
        if (names_find(&own, one->renamed[i]) == NO_NAME) {
            refuse(of, MTLC_REFERENCE, "manifest.json: program %s: names: it neither reads nor writes %s",
                   shown(one->name), shown(one->renamed[i]));
        }
    }
    if (one->experts != NULL) {
        check_experts(of, one, in);
    }
}

/* Adds a payload that is one thing only; `what` refuses it where it is another's already. */
static void add_payload(check *of, names *used, text file, const char *what)
{
    bool added;
    names_add(of, used, file, &added);
    if (!added) {
        refuse(of, MTLC_TWICE, "manifest.json: %s: %s is another payload's file", what, shown(file));
    }
}

static void need_file(check *of, const manifest *in, text file, const char *what)
{
    if (names_find(&in->file_names, file) == NO_NAME) {
        refuse(of, MTLC_REFERENCE, "manifest.json: %s: %s is not in files", what, shown(file));
    }
}

static names program_files(check *of, const manifest *in)
{
    names made = {0};
    for (size_t i = 0; i < in->program_count; i++) {
        names_add(of, &made, in->programs[i].file, NULL);
    }
    return made;
}

static void check_engines(check *of, const manifest *in)
{
    names programs = program_files(of, in), used = program_files(of, in);
    for (size_t i = 0; i < in->engine_count; i++) {
        if (names_find(&programs, in->engines[i].program_file) == NO_NAME) {
            refuse(of, MTLC_REFERENCE, "manifest.json: engines: no program has the file %s",
                   shown(in->engines[i].program_file));
        }
        need_file(of, in, in->engines[i].file, "engines");
        add_payload(of, &used, in->engines[i].file, "engines");
    }
}

static void check_openvino(check *of, const manifest *in)
{
    const openvino *ir = in->openvino;
    names programs = program_files(of, in), used = program_files(of, in), have = {0};
    for (size_t i = 0; i < ir->count; i++) {
        names_add(of, &have, ir->program_files[i], NULL);
        if (names_find(&programs, ir->program_files[i]) == NO_NAME) {
            refuse(of, MTLC_REFERENCE, "manifest.json: openvino.files: no program has the file %s",
                   shown(ir->program_files[i]));
        }
    }
    for (size_t i = 0; i < programs.count; i++) {
        if (names_find(&have, programs.listed[i]) == NO_NAME) {
            refuse(of, MTLC_REFERENCE, "manifest.json: openvino.files.%s is missing", shown(programs.listed[i]));
        }
    }
    for (size_t i = 0; i < in->engine_count; i++) {
        names_add(of, &used, in->engines[i].file, NULL);
    }
    for (size_t i = 0; i < ir->count; i++) {
        need_file(of, in, ir->files[i], "openvino.files");
        if (text_equal(ir->files[i], ir->weights)) {
            refuse(of, MTLC_TWICE, "manifest.json: openvino.files: %s is another payload's file", shown(ir->files[i]));
        }
        add_payload(of, &used, ir->files[i], "openvino.files");
        if (!text_ends(ir->files[i], ".xml")) {
            refuse(of, MTLC_FILE_NAME, "manifest.json: openvino.files: %s must end in .xml", shown(ir->files[i]));
        }
    }
    need_file(of, in, ir->weights, "openvino.weights");
    if (ir->shared_bytes > in->files[names_find(&in->file_names, ir->weights)].bytes) {
        refuse(of, MTLC_KEY_VALUE, "manifest.json: openvino.shared_bytes is more than %s has", shown(ir->weights));
    }
}

static bool matches(const shape *picture, const detection *how)
{
    return picture->rank == 4 && (picture->at[2] < 0 || picture->at[2] == how->height) &&
           (picture->at[3] < 0 || picture->at[3] == how->width);
}

static void check_task(check *of, const manifest *in, const task *one)
{
    const detection *how = one->postprocess;
    const shape *output = &one->output.shape;
    bool fits = text_equal(one->kind, TEXT("boxes")) &&
                (one->output.dtype == MTLC_FLOAT16 || one->output.dtype == MTLC_FLOAT32);
    fits = fits && output->rank == 3 && output->at[1] == how->anchors && output->at[2] > how->box_columns;
    fits = fits && (!how->named || (int64_t)how->name_count == output->at[2] - how->box_columns);
    bool pictured = false;
    for (size_t i = 0; i < in->input_count; i++) {
        pictured = pictured || matches(&in->inputs[i].shape, how);
    }
    if (!fits || !pictured) {
        refuse(of, MTLC_POSTPROCESS, "manifest.json: tasks.%s.postprocess does not fit its %s", one->name.data,
               fits ? "input" : "output");
    }
}

void check_postprocessing(check *of, const manifest *in)
{
    names taken = program_files(of, in);
    for (size_t i = 0; i < in->engine_count; i++) {
        names_add(of, &taken, in->engines[i].file, NULL);
    }
    for (size_t i = 0; i < in->program_count; i++) {
        if (in->programs[i].experts != NULL) {
            names_add(of, &taken, in->programs[i].experts->file, NULL);
        }
    }
    for (size_t i = 0; in->openvino != NULL && i < in->openvino->count; i++) {
        names_add(of, &taken, in->openvino->files[i], NULL);
    }
    if (in->openvino != NULL) {
        names_add(of, &taken, in->openvino->weights, NULL);
    }
    for (size_t i = 0; i < in->task_count; i++) {
        const task *one = in->tasks + i;
        if (one->postprocess != NULL) {
            check_task(of, in, one);
        } else if (one->has_decoder) {
            refuse(of, MTLC_POSTPROCESS, "manifest.json: tasks.%s.decoder: the task has no postprocess for it to do",
                   one->name.data);
        }
        if (!one->has_decoder) {
            continue;
        }
        need_file(of, in, one->decoder, "a task's decoder");
        if (!text_ends(one->decoder, ".onnx")) {
            refuse(of, MTLC_FILE_NAME, "manifest.json: tasks.%s.decoder: %s must end in .onnx", one->name.data,
                   shown(one->decoder));
        }
        add_payload(of, &taken, one->decoder, "a task's decoder");
    }
}

void check_manifest(check *of, manifest *in)
{
    if (in->task_count > MAX_TASKS || in->program_count > MAX_PROGRAMS) {
        refuse(of, MTLC_LIMIT, "manifest.json: it has more than %d tasks or %d programs", MAX_TASKS, MAX_PROGRAMS);
    }
    if (in->task_count == 0 || in->input_count == 0) {
        refuse(of, MTLC_KEY_VALUE, "manifest.json: %s is empty", in->task_count == 0 ? "tasks" : "inputs");
    }
    in->mask_words = (in->task_count + 63) / 64;
    in->input_ids = take(of, in->input_count, sizeof *in->input_ids);
    in->task_output_ids = take(of, in->task_count, sizeof *in->task_output_ids);
    for (size_t i = 0; i < in->input_count; i++) {
        bool added;
        in->input_ids[i] = names_add(of, &in->tensors, in->inputs[i].name, &added);
        if (!added) {
            refuse(of, MTLC_TWICE, "manifest.json: inputs: %s is listed twice", shown(in->inputs[i].name));
        }
    }
    for (size_t i = 0; i < in->task_count; i++) {
        names_add(of, &in->task_names, in->tasks[i].name, NULL);
        in->task_output_ids[i] = names_add(of, &in->tensors, in->tasks[i].output.name, NULL);
    }
    for (size_t i = 0; i < in->file_count; i++) {
        names_add(of, &in->file_names, in->files[i].name, NULL);
    }
    int64_t experts_in_all = 0;
    for (size_t i = 0; i < in->program_count; i++) {
        check_program(of, in, i);
    }
    for (size_t i = 0; i < in->program_count; i++) {
        if (in->programs[i].experts != NULL) {
            const int64_t count = in->programs[i].experts->count;
            experts_in_all = count > MAX_EXPERTS ? count : experts_in_all + count;
            if (experts_in_all > MAX_EXPERTS) {
                refuse(of, MTLC_LIMIT, "manifest.json: programs have more than %d experts in all", MAX_EXPERTS);
            }
        }
    }
    check_engines(of, in);
    check_postprocessing(of, in);
    if (in->openvino != NULL) {
        check_openvino(of, in);
    }
    check_widths(of, in);
}
