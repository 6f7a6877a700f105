/* Makes plans: the programs that a set of tasks needs, with names for all that they read and make. */
#include "plan.h"

#include <stdlib.h>
#include <string.h>

static const size_t NO_TENSOR = SIZE_MAX;

static const char *name_in_file(const program *of, text name)
{
    for (size_t i = 0; i < of->renamed_count; i++) {
        if (text_equal(of->renamed[i], name)) {
            return of->in_file[i].data;
        }
    }
    return name.data;
}

/* A constant that the bundle feeds, int64 (1,). */
static ort_value *make_constant(mtlc_plan *plan, int64_t value, mtlc_error *error)
{
    static const int64_t one = 1;
    ort_value *made = NULL;
    int64_t *kept = arena_take(&plan->memory, sizeof *kept);
    if (kept == NULL) {
        fail(error, MTLC_MEMORY, "no memory left");
        return NULL;
    }
    *kept = value;
    if (engine_wrap(plan->session->engine, MTLC_INT64, &one, 1, kept, sizeof *kept, &made, error) == MTLC_OK) {
        plan->constants[plan->constant_count++] = made;
    }
    return made;
}

/* A file's input is fed once: where two tensors go by its name, the last one is. */
static void add_input(step *made, const char *name, size_t tensor)
{
    size_t place = 0;
    while (place < made->input_count && strcmp(made->input_names[place], name) != 0) {
        place++;
    }
    made->input_names[place] = name;
    made->input_ids[place] = tensor;
    made->input_count += place == made->input_count;
}

static mtlc_code make_step(mtlc_plan *plan, step *made, const bool *used, mtlc_error *error)
{
    const program *of = made->of;
    const size_t inputs = of->inputs.count + of->constant_count, outputs = of->outputs.count;
    made->input_names = arena_take(&plan->memory, (inputs + 1) * sizeof *made->input_names);
    made->output_names = arena_take(&plan->memory, (outputs + 1) * sizeof *made->output_names);
    made->input_ids = arena_take(&plan->memory, (inputs + 1) * sizeof *made->input_ids);
    made->output_ids = arena_take(&plan->memory, (outputs + 1) * sizeof *made->output_ids);
    made->inputs = arena_take(&plan->memory, (inputs + 1) * sizeof *made->inputs);
    made->outputs = arena_take(&plan->memory, (outputs + 1) * sizeof *made->outputs);
    if (!made->input_names || !made->output_names || !made->input_ids || !made->output_ids || !made->inputs ||
        !made->outputs) {
        return fail(error, MTLC_MEMORY, "no memory left");
    }
    for (size_t i = 0; i < of->inputs.count; i++) {
        const char *name = name_in_file(of, of->inputs.at[i]);
        bool constant = false;
        for (size_t j = 0; j < of->constant_count; j++) {
            constant = constant || strcmp(name, of->constant_names[j].data) == 0; /* a constant goes before a tensor */
        }
        if (!constant) {
            add_input(made, name, of->input_ids[i]);
        }
    }
    for (size_t i = 0; i < of->constant_count; i++) {
        made->input_names[made->input_count] = of->constant_names[i].data;
        made->input_ids[made->input_count] = NO_TENSOR;
        made->inputs[made->input_count] = make_constant(plan, of->constants[i], error);
        if (made->inputs[made->input_count++] == NULL) {
            return error == NULL ? MTLC_MEMORY : error->code;
        }
    }
    for (size_t i = 0; i < outputs; i++) {
        if (used[of->output_ids[i]]) {
            made->output_names[made->output_count] = name_in_file(of, of->outputs.at[i]);
            made->output_ids[made->output_count++] = of->output_ids[i];
        }
    }
    return load_program(plan->session, (size_t)(of - plan->session->bundle.manifest->programs), &made->loaded, error);
}

static mtlc_code make_steps(mtlc_plan *plan, const mtlc_configuration *configuration, const uint64_t *asked,
                            mtlc_error *error)
{
    const manifest *in = plan->session->bundle.manifest;
    bool *used = arena_take(&plan->memory, in->tensors.count * sizeof *used);
    size_t constants = 0;
    plan->steps = arena_take(&plan->memory, (configuration->program_count + 1) * sizeof *plan->steps);
    plan->values = arena_take(&plan->memory, in->tensors.count * sizeof(ort_value *));
    plan->wanted = arena_take(&plan->memory, in->task_count * sizeof *plan->wanted);
    plan->results = arena_take(&plan->memory, in->task_count * sizeof *plan->results);
    plan->inputs = arena_take(&plan->memory, in->input_count * sizeof *plan->inputs);
    if (!used || !plan->steps || !plan->values || !plan->wanted || !plan->results || !plan->inputs) {
        return fail(error, MTLC_MEMORY, "no memory left");
    }
    for (size_t i = 0; i < in->task_count; i++) {
        plan->wanted[i] = has_task(asked, i);
        used[in->task_output_ids[i]] = used[in->task_output_ids[i]] || plan->wanted[i];
    }
    for (size_t i = 0; i < configuration->program_count; i++) {
        const program *of = in->programs + configuration->programs[i];
        if (!shares_task(of->task_bits, asked, in->mask_words)) {
            continue;
        }
        if (of->experts != NULL) {
            return fail(error, MTLC_UNSUPPORTED,
                        "%s: it keeps experts outside its graphs, which this library does not read: export it with "
                        "another [export] experts", plan->session->bundle.path.data);
        }
        plan->steps[plan->step_count++].of = of;
        constants += of->constant_count;
        for (size_t j = 0; j < of->inputs.count; j++) {
            used[of->input_ids[j]] = true;
        }
    }
    plan->constants = arena_take(&plan->memory, (constants + 1) * sizeof(ort_value *));
    mtlc_code code = plan->constants == NULL ? fail(error, MTLC_MEMORY, "no memory left") : MTLC_OK;
    for (size_t i = 0; code == MTLC_OK && i < plan->step_count; i++) {
        code = make_step(plan, plan->steps + i, used, error);
    }
    return code;
}

mtlc_code mtlc_plan_new(mtlc_session *session, const mtlc_configuration *configuration, const char *const *tasks,
                        size_t task_count, mtlc_plan **plan, mtlc_error *error)
{
    mtlc_configuration *named = NULL;
    mtlc_error why;
    if (session == NULL || plan == NULL || (configuration != NULL && configuration->session != session)) {
        return fail(error, MTLC_ARGUMENT, "the session or the place for the plan is NULL, or the configuration is "
                                          "another session's");
    }
    *plan = NULL;
    mtlc_code code = check_process(session, &why);
    mtlc_plan *made = code == MTLC_OK ? calloc(1, sizeof *made) : NULL;
    uint64_t *asked = NULL;
    if (made != NULL) {
        made->session = session;
        asked = arena_take(&made->memory, session->bundle.manifest->mask_words * sizeof *asked);
    }
    if (code == MTLC_OK && asked == NULL) {
        code = fail(&why, MTLC_MEMORY, "no memory left");
    }
    if (code == MTLC_OK) {
        code = read_tasks(session, tasks, task_count, asked, &why);
    }
    if (code == MTLC_OK && configuration == NULL) {
        code = mtlc_configuration_named(session, "default", &named, &why);
        configuration = named;
    }
    if (code == MTLC_OK) {
        code = make_steps(made, configuration, asked, &why);
    }
    mtlc_configuration_free(named);
    if (code != MTLC_OK) {
        mtlc_plan_free(made);
        return fail(error, code, "%s", why.message);
    }
    *plan = made;
    return MTLC_OK;
}

void release_value(const mtlc_plan *plan, ort_value **value)
{
    if (*value != NULL) {
        plan->session->engine->api.ReleaseValue(*value);
        *value = NULL;
    }
}

void cool_plan(mtlc_plan *plan)
{
    plan->warm = false;
    for (size_t i = 0; i < plan->step_count; i++) {
        for (size_t j = 0; j < plan->steps[i].output_count; j++) {
            plan->steps[i].outputs[j] = NULL;
            release_value(plan, plan->values + plan->steps[i].output_ids[j]);
        }
    }
}

void mtlc_plan_free(mtlc_plan *plan)
{
    if (plan == NULL) {
        return;
    }
    const manifest *in = plan->session->bundle.manifest;
    if (plan->values != NULL) {
        cool_plan(plan);
    }
    for (size_t i = 0; plan->inputs != NULL && i < in->input_count; i++) {
        release_value(plan, plan->values + in->input_ids[i]);
        free(plan->inputs[i].own);
    }
    for (size_t i = 0; i < plan->constant_count; i++) {
        release_value(plan, plan->constants + i);
    }
    arena_free(&plan->memory);
    free(plan);
}

size_t mtlc_plan_program_count(const mtlc_plan *plan)
{
    return plan->step_count;
}

const char *mtlc_plan_program(const mtlc_plan *plan, size_t place)
{
    return place < plan->step_count ? plan->steps[place].of->name.data : NULL;
}
