/* Checks how much an ONNX file may compute: no loops, and no tensor made of a few bytes that fills the memory.
 *
 * The Python runtime's work_check.py says why, and what is followed. The file has passed check_graph. */
#include "work.h"

#include <math.h>

/* -- sizes -------------------------------------------------------------------------------------------------------- */

typedef enum made_by { BY_PRODUCT, BY_RANGE, BY_MEL, BY_SHAPE, BY_PADS, BY_RESIZE } made_by;

/* The operators that make large tensors of small ones. */
static const struct maker {
    const char *operator_of;
    made_by by;
    size_t input;      /* of a product: whose numbers */
    size_t sizes_from; /* the first input that says how large the tensor is */
} MAKERS[] = {
    {"ConstantOfShape", BY_PRODUCT, 0, 0}, {"Expand", BY_PRODUCT, 1, 1},        {"Tile", BY_PRODUCT, 1, 1},
    {"Range", BY_RANGE, 0, 0},             {"OneHot", BY_PRODUCT, 1, 1},        {"CenterCropPad", BY_PRODUCT, 1, 1},
    {"DFT", BY_PRODUCT, 1, 1},             {"MelWeightMatrix", BY_MEL, 0, 0},   {"BlackmanWindow", BY_PRODUCT, 0, 0},
    {"HammingWindow", BY_PRODUCT, 0, 0},   {"HannWindow", BY_PRODUCT, 0, 0},    {"RandomNormal", BY_SHAPE, 0, 0},
    {"RandomUniform", BY_SHAPE, 0, 0},     {"Pad", BY_PADS, 0, 1},              {"Resize", BY_RESIZE, 0, 2},
    {"Upsample", BY_RESIZE, 0, 1},
};

static double at_least_one(const constant *numbers)
{
    double found = 1;
    for (size_t i = 0; i < numbers->count; i++) {
        found *= numbers->at[i] > 1 ? numbers->at[i] : 1;
    }
    return found;
}

/* How many numbers the node makes; false where the graph alone does not tell. `read` has its inputs' numbers. */
static bool sizes_of(const struct maker *how, const node *of, const constant *read, double *elements)
{
    const constant none = {NULL, 0};
#define READ(place) ((place) < of->inputs.count ? read[place] : none)
    const constant one = READ(0), two = READ(1), three = READ(2), four = READ(3);
    const constant given = READ(how->input);
#undef READ
    switch (how->by) {
    case BY_PRODUCT:
        *elements = given.at == NULL ? 0 : at_least_one(&given);
        return given.at != NULL;
    case BY_RANGE:
        if (one.count == 0 || two.count == 0 || three.count == 0) {
            return false;
        }
        *elements = three.at[0] != 0 ? (two.at[0] - one.at[0]) / three.at[0] : HUGE_VAL;
        *elements = *elements > 0 ? *elements : 0;
        return true;
    case BY_MEL:
        if (one.count == 0 || two.count == 0) {
            return false;
        }
        *elements = (one.at[0] > 1 ? one.at[0] : 1) * (two.at[0] > 1 ? two.at[0] : 1);
        return true;
    case BY_SHAPE: {
        const constant *shape = attribute_of(of, "shape");
        *elements = shape == NULL ? 1 : product(shape->at, shape->count);
        return true;
    }
    case BY_PADS:
        *elements = two.count == 0 ? 0 : -HUGE_VAL;
        for (size_t i = 0; i < two.count; i++) {
            const double pad = two.at[i] <= MAX_STEP ? two.at[i] : HUGE_VAL;
            *elements = pad > *elements ? pad : *elements;
        }
        return two.at != NULL;
    case BY_RESIZE: {
        const constant scales = three.count > 0 ? three : two;
        if (four.count > 0) {
            *elements = at_least_one(&four);
            return true;
        }
        for (size_t i = 0; i < scales.count; i++) {
            if (!(fabs(scales.at[i]) <= MAX_STEP)) {
                *elements = HUGE_VAL;
                return true;
            }
        }
        *elements = at_least_one(&scales);
        return scales.count > 0;
    }
    }
    return false;
}

static void check_nodes(work *by, buffer content, const scope *outer);

static void check_windows(const work *by, const node *of)
{
    static const char *const windows[] = {"AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool",
                                          "MaxUnpool", "Col2Im", "Pad", NULL};
    static const char *const steps[] = {"pads", "strides", "output_shape", "output_padding", "kernel_shape",
                                        "dilations", NULL};
    for (size_t i = 0; steps[i] != NULL && is_one_of(of->operator_of, windows); i++) {
        const constant *numbers = attribute_of(of, steps[i]);
        for (size_t j = 0; numbers != NULL && j < numbers->count; j++) {
            if (fabs(numbers->at[j]) > MAX_STEP) {
                refuse_work(by, of->operator_of, "has a size of more than 65536 along an axis");
            }
        }
    }
}

static void check_size(work *by, const node *of, const constant *read, const bool *there)
{
    for (size_t i = 0; i < sizeof MAKERS / sizeof *MAKERS; i++) {
        double elements;
        if (!text_equal(of->operator_of, text_of(MAKERS[i].operator_of))) {
            continue;
        }
        if (sizes_of(MAKERS + i, of, read, &elements)) {
            add_tensor(by, of->operator_of, elements);
            return;
        }
        for (size_t j = MAKERS[i].sizes_from; j < of->inputs.count; j++) {
            if (there[j] && read[j].at == NULL) {
                refuse_work(by, of->operator_of, "makes a tensor whose size the graph computes of constants");
            }
        }
    }
}

static void check_node(work *by, const node *of, scope *known)
{
    static const char *const loops[] = {"Loop", "Scan", "SequenceMap", NULL};
    const constant none = {NULL, 0};
    if (is_one_of(of->operator_of, loops)) {
        refuse_work(by, of->operator_of, "repeats a graph");
    }
    for (const content_list *one = of->sparse; one != NULL; one = one->next) {
        count_sparse(by, one->content);
    }
    for (const content_list *one = of->graphs; one != NULL; one = one->next) {
        check_nodes(by, one->content, known);
    }
    constant *read = take(by->of, of->inputs.count + 1, sizeof *read);
    bool *there = take(by->of, of->inputs.count + 1, sizeof *there), all = true;
    for (size_t i = 0; i < of->inputs.count; i++) {
        there[i] = find_constant(known, of->inputs.at[i], read + i);
        all = all && (there[i] || of->inputs.at[i].length == 0);
    }
    check_windows(by, of);
    check_size(by, of, read, there);
    if (!all) {
        return;
    }
    for (size_t i = 0; i < of->outputs.count; i++) {
        set_constant(by, known, of->outputs.at[i], none);
    }
    if (of->outputs.count > 0) {
        const constant value = value_of(by, of, read);
        set_constant(by, known, of->outputs.at[0], value.count <= FOLLOWED ? value : none);
    }
}

static void check_nodes(work *by, buffer content, const scope *outer)
{
    fields parts = begin_fields(by->of, by->name, &GRAPH, content);
    scope known = {.outer = outer};
    node *first = NULL, **last = &first;
    names made = {0};
    field part;
    while (next_field(&parts, &part)) {
        if (part.number == 1) { /* node */
            *last = read_node(by, part.content);
            last = &(*last)->next;
        } else if (part.number == 5) { /* initializer */
            text name;
            const constant value = read_tensor(by, part.content, &name);
            set_constant(by, &known, name, value);
        } else if (part.number == 15) { /* sparse_initializer */
            count_sparse(by, part.content);
        }
    }
    for (const node *one = first; one != NULL; one = one->next) {
        for (size_t i = 0; i < one->outputs.count; i++) {
            names_add(by->of, &made, one->outputs.at[i], NULL);
        }
    }
    bool *done = take(by->of, made.count + 1, sizeof *done);
    for (const node *one = first; one != NULL; one = one->next) {
        for (size_t i = 0; i < one->inputs.count; i++) {
            const long maker = names_find(&made, one->inputs.at[i]);
            if (one->inputs.at[i].length > 0 && maker != NO_NAME && !done[maker]) {
                refuse_work(by, one->operator_of, "reads what is computed after it");
            }
        }
        for (size_t i = 0; i < one->outputs.count; i++) {
            done[names_find(&made, one->outputs.at[i])] = true;
        }
        check_node(by, one, &known);
    }
}

void check_work(check *of, const char *name, buffer content, const char *folder)
{
    work by = {of, name, folder, 0};
    fields parts = begin_fields(of, name, &MODEL, content);
    field part;
    while (next_field(&parts, &part)) {
        if (part.number == 7) { /* graph */
            check_nodes(&by, part.content, NULL);
        }
    }
}
