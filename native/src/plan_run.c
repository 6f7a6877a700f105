/* Runs plans: the first run binds the tensors between the programs, later ones write into them. */
#include "plan.h"

#include <string.h>

/* An engine may give an input back as an output. That memory may be the caller's: the output gets some of its own. */
static mtlc_code separate(mtlc_plan *plan, const step *of, ort_value **value, mtlc_error *error)
{
    const engine *in = plan->session->engine;
    mtlc_view made, read;
    mtlc_code code = engine_view(in, *value, &made, error);
    for (size_t i = 0; code == MTLC_OK && made.bytes > 0 && i < of->input_count; i++) {
        code = engine_view(in, of->inputs[i], &read, error);
        if (code != MTLC_OK || read.data != made.data) {
            continue;
        }
        ort_value *own = NULL;
        code = engine_outcome(in,
                              in->api.CreateTensorAsOrtValue(in->allocator, made.shape, (size_t)made.rank,
                                                             engine_dtype(made.dtype), &own),
                              MTLC_RUN, "a tensor cannot be made", error);
        code = code != MTLC_OK ? code : engine_view(in, own, &read, error);
        if (code == MTLC_OK) {
            memcpy(read.data, made.data, made.bytes);
            in->api.ReleaseValue(*value);
            *value = own;
        } else if (own != NULL) {
            in->api.ReleaseValue(own);
        }
        break;
    }
    return code;
}

static mtlc_code run_step(mtlc_plan *plan, step *of, mtlc_error *error)
{
    const engine *in = plan->session->engine;
    ort_status *status = in->api.Run(of->loaded, NULL, of->input_names, (const ort_value *const *)of->inputs,
                                     of->input_count, of->output_names, of->output_count, of->outputs);
    mtlc_code code = MTLC_OK;
    if (status != NULL) {
        mtlc_error why;
        code = engine_outcome(in, status, MTLC_RUN, "failed", &why);
        fail(error, code, "%s: program %s %s", plan->session->bundle.path.data, shown(of->of->name), why.message);
    }
    if (plan->warm) {
        return code;
    }
    /* What was made is the plan's now, whatever comes after. */
    for (size_t i = 0; i < of->output_count; i++) {
        mtlc_code outcome = MTLC_OK;
        if (code == MTLC_OK) {
            outcome = separate(plan, of, of->outputs + i, error);
        }
        plan->values[of->output_ids[i]] = of->outputs[i];
        connect_tensor(plan, of->output_ids[i]);
        code = code != MTLC_OK ? code : outcome;
    }
    return code;
}

static mtlc_code run_steps(mtlc_plan *plan, mtlc_error *error)
{
    mtlc_code code = MTLC_OK;
    for (size_t i = 0; code == MTLC_OK && i < plan->step_count; i++) {
        code = run_step(plan, plan->steps + i, error);
    }
    return code;
}

/* The first run: the engine makes the tensors, which later runs write into. */
static mtlc_code warm_up(mtlc_plan *plan, mtlc_error *error)
{
    const manifest *in = plan->session->bundle.manifest;
    mtlc_code code = check_inputs(plan, error);
    cool_plan(plan);
    code = code != MTLC_OK ? code : run_steps(plan, error);
    for (size_t i = 0; code == MTLC_OK && i < in->task_count; i++) {
        if (plan->wanted[i]) {
            code = engine_view(plan->session->engine, plan->values[in->task_output_ids[i]], plan->results + i, error);
        }
    }
    if (code == MTLC_OK) {
        plan->warm = true;
    } else {
        cool_plan(plan);
    }
    return code;
}

mtlc_code mtlc_plan_run(mtlc_plan *plan, mtlc_error *error)
{
    if (plan == NULL) {
        return fail(error, MTLC_ARGUMENT, "the plan is NULL");
    }
    const mtlc_code code = check_process(plan->session, error);
    if (code != MTLC_OK) {
        return code;
    }
    if (plan->warm && run_steps(plan, NULL) == MTLC_OK) {
        return MTLC_OK;
    }
    /* Where a size follows from the data, a tensor of the last run does not fit this one's. */
    return warm_up(plan, error);
}

static mtlc_code find_result(const mtlc_plan *plan, const char *task, size_t *place, mtlc_error *error)
{
    const manifest *in = plan->session->bundle.manifest;
    const long found = task == NULL ? NO_NAME : names_find(&in->task_names, text_of(task));
    if (found == NO_NAME || !plan->wanted[found]) {
        return fail(error, MTLC_TASK, "the plan has no task %s", task == NULL ? "NULL" : shown(text_of(task)));
    }
    if (!plan->warm) {
        return fail(error, MTLC_ARGUMENT, "the plan has not run with these shapes");
    }
    *place = (size_t)found;
    return MTLC_OK;
}

mtlc_code mtlc_plan_output(const mtlc_plan *plan, const char *task, mtlc_view *view, mtlc_error *error)
{
    size_t place = 0;
    if (plan == NULL || view == NULL) {
        return fail(error, MTLC_ARGUMENT, "the plan or the place for the view is NULL");
    }
    const mtlc_code code = find_result(plan, task, &place, error);
    if (code == MTLC_OK) {
        *view = plan->results[place];
    }
    return code;
}

mtlc_code mtlc_plan_set_output(mtlc_plan *plan, const char *task, void *data, size_t bytes, mtlc_error *error)
{
    size_t place = 0;
    if (plan == NULL || data == NULL) {
        return fail(error, MTLC_ARGUMENT, "the plan or the memory is NULL");
    }
    mtlc_code code = find_result(plan, task, &place, error);
    if (code != MTLC_OK) {
        return code;
    }
    const mtlc_view *old = plan->results + place;
    if (bytes != old->bytes) {
        return fail(error, MTLC_ARGUMENT, "the result of %s has %zu bytes, not %zu", task, old->bytes, bytes);
    }
    ort_value *made = NULL;
    code = engine_wrap(plan->session->engine, old->dtype, old->shape, old->rank, data, bytes, &made, error);
    if (code != MTLC_OK) {
        return code;
    }
    const manifest *in = plan->session->bundle.manifest;
    const size_t tensor = in->task_output_ids[place];
    ort_value *before = plan->values[tensor];
    memcpy(data, old->data, bytes);
    for (size_t i = 0; i < plan->step_count; i++) {
        for (size_t j = 0; j < plan->steps[i].output_count; j++) {
            if (plan->steps[i].output_ids[j] == tensor) {
                plan->steps[i].outputs[j] = made;
            }
        }
    }
    plan->values[tensor] = made;
    connect_tensor(plan, tensor);
    plan->session->engine->api.ReleaseValue(before);
    for (size_t i = 0; i < in->task_count; i++) {
        if (plan->wanted[i] && in->task_output_ids[i] == tensor) {
            plan->results[i].data = data;
        }
    }
    return MTLC_OK;
}
