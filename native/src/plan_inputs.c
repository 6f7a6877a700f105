/* Binds inputs to plans. */
#include "plan.h"

#include <stdlib.h>
#include <string.h>

static mtlc_code find_input(const mtlc_plan *plan, const char *name, size_t *place, mtlc_error *error)
{
    const manifest *in = plan->session->bundle.manifest;
    if (name == NULL && in->input_count == 1) {
        *place = 0;
        return MTLC_OK;
    }
    for (size_t i = 0; name != NULL && i < in->input_count; i++) {
        if (text_equal(in->inputs[i].name, text_of(name))) {
            *place = i;
            return MTLC_OK;
        }
    }
    return name == NULL ? fail(error, MTLC_INPUT, "the bundle has several inputs: name one")
                        : fail(error, MTLC_INPUT, "the bundle has no input %s", shown(text_of(name)));
}

static mtlc_code check_input(const tensor *of, mtlc_dtype dtype, const int64_t *shape, int rank, const void *data,
                             size_t bytes, mtlc_error *error)
{
    if (dtype != of->dtype) {
        return fail(error, MTLC_INPUT, "input %s is %s, the bundle takes %s", shown(of->name),
                    mtlc_dtype_name(dtype) ? mtlc_dtype_name(dtype) : "of no dtype", mtlc_dtype_name(of->dtype));
    }
    bool good = rank == of->shape.rank && (shape != NULL || rank == 0);
    size_t needed = mtlc_dtype_bytes(dtype);
    for (int i = 0; good && i < rank; i++) {
        good = shape[i] > 0 && (of->shape.at[i] < 0 || of->shape.at[i] == shape[i]) &&
               (uint64_t)shape[i] <= (SIZE_MAX / 2) / needed;
        needed = good ? needed * (size_t)shape[i] : needed;
    }
    if (!good) {
        return fail(error, MTLC_INPUT, "input %s has a shape that the bundle does not take", shown(of->name));
    }
    if (data != NULL && bytes != needed) {
        return fail(error, MTLC_INPUT, "input %s has %zu bytes, its shape %zu", shown(of->name), bytes, needed);
    }
    return MTLC_OK;
}

void connect_tensor(mtlc_plan *plan, size_t tensor)
{
    for (size_t i = 0; i < plan->step_count; i++) {
        for (size_t j = 0; j < plan->steps[i].input_count; j++) {
            if (plan->steps[i].input_ids[j] == tensor) {
                plan->steps[i].inputs[j] = plan->values[tensor];
            }
        }
    }
}

mtlc_code mtlc_plan_set_input(mtlc_plan *plan, const char *name, mtlc_dtype dtype, const int64_t *shape, int rank,
                              void *data, size_t bytes, mtlc_error *error)
{
    size_t place = 0;
    if (plan == NULL) {
        return fail(error, MTLC_ARGUMENT, "the plan is NULL");
    }
    mtlc_code code = find_input(plan, name, &place, error);
    const manifest *in = plan->session->bundle.manifest;
    code = code != MTLC_OK ? code : check_input(in->inputs + place, dtype, shape, rank, data, bytes, error);
    if (code != MTLC_OK) {
        return code;
    }
    bound_input *input = plan->inputs + place;
    mtlc_view view = {.dtype = dtype, .rank = rank, .data = data, .bytes = mtlc_dtype_bytes(dtype)};
    bool same = input->set;
    for (int i = 0; i < rank; i++) {
        same = same && input->view.shape[i] == shape[i];
        view.shape[i] = shape[i];
        view.bytes *= (size_t)shape[i];
    }
    void *own = NULL;
    if (data == NULL) {
        own = calloc(1, view.bytes);
        view.data = own;
        if (own == NULL) {
            return fail(error, MTLC_MEMORY, "no memory left for %zu bytes", view.bytes);
        }
    }
    ort_value *made = NULL;
    code = engine_wrap(plan->session->engine, dtype, view.shape, rank, view.data, view.bytes, &made, error);
    if (code != MTLC_OK) {
        free(own);
        return code;
    }
    if (!same) {
        cool_plan(plan);
    }
    release_value(plan, plan->values + in->input_ids[place]);
    free(input->own);
    *input = (bound_input){view, own, true};
    plan->values[in->input_ids[place]] = made;
    connect_tensor(plan, in->input_ids[place]);
    return MTLC_OK;
}

mtlc_code mtlc_plan_input(const mtlc_plan *plan, const char *name, mtlc_view *view, mtlc_error *error)
{
    size_t place = 0;
    const mtlc_code code = find_input(plan, name, &place, error);
    if (code == MTLC_OK && !plan->inputs[place].set) {
        const text missing = plan->session->bundle.manifest->inputs[place].name;
        return fail(error, MTLC_INPUT, "input %s is not set", shown(missing));
    }
    if (code == MTLC_OK) {
        *view = plan->inputs[place].view;
    }
    return code;
}

mtlc_code check_inputs(const mtlc_plan *plan, mtlc_error *error)
{
    const manifest *in = plan->session->bundle.manifest;
    for (size_t i = 0; i < in->input_count; i++) {
        if (!plan->inputs[i].set) {
            return fail(error, MTLC_INPUT, "input %s is not set", shown(in->inputs[i].name));
        }
    }
    for (size_t i = 0; i < in->input_count; i++) {
        const shape *mine = &in->inputs[i].shape;
        for (int a = 0; a < mine->rank; a++) {
            for (size_t j = 0; mine->at[a] < 0 && j <= i; j++) {
                const shape *other = &in->inputs[j].shape;
                for (int b = 0; b < other->rank; b++) {
                    if (other->at[b] < 0 && text_equal(mine->named[a], other->named[b]) &&
                        plan->inputs[i].view.shape[a] != plan->inputs[j].view.shape[b]) {
                        return fail(error, MTLC_INPUT, "input %s: %s has two sizes", shown(in->inputs[i].name),
                                    shown(mine->named[a]));
                    }
                }
            }
        }
    }
    return MTLC_OK;
}
