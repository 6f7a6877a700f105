/* Reads operators, and computes those that sizes are made by of constants. */
#include "work.h"

#include <math.h>
#include <string.h>

static void keep(const work *by, content_list **list, buffer content)
{
    content_list *made = take(by->of, 1, sizeof *made);
    *made = (content_list){content, *list};
    *list = made;
}

static void read_attribute(const work *by, buffer content, node *into)
{
    fields parts = begin_fields(by->of, by->name, &ATTRIBUTE, content), again = parts;
    attribute *made = take(by->of, 1, sizeof *made);
    size_t count = 0;
    field part;
    while (next_field(&again, &part)) {
        if (part.number == 3 || part.number == 8) { /* i, ints */
            list_numbers(by, &part, NULL, 0, &count, true);
        }
    }
    made->name = TEXT("");
    made->numbers.at = take(by->of, count + 1, sizeof(double));
    while (next_field(&parts, &part)) {
        if (part.number == 1) {
            made->name = field_text(&parts, part.content);
        } else if (part.number == 3 || part.number == 8) {
            list_numbers(by, &part, made->numbers.at, count, &made->numbers.count, true);
        } else if (part.number == 5) { /* t */
            into->tensor = part.content;
            into->has_tensor = true;
        } else if (part.number == 22 || part.number == 23) { /* sparse_tensor, sparse_tensors */
            keep(by, &into->sparse, part.content);
        } else if (part.number == 6 || part.number == 11) { /* g, graphs */
            keep(by, &into->graphs, part.content);
        }
    }
    made->before = into->attributes;
    into->attributes = made;
}

node *read_node(const work *by, buffer content)
{
    fields parts = begin_fields(by->of, by->name, &NODE, content), again = parts;
    node *made = take(by->of, 1, sizeof *made);
    size_t inputs = 0, outputs = 0;
    field part;
    while (next_field(&again, &part)) {
        inputs += part.number == 1;
        outputs += part.number == 2;
    }
    made->operator_of = TEXT("");
    made->inputs.at = take(by->of, inputs, sizeof(text));
    made->outputs.at = take(by->of, outputs, sizeof(text));
    while (next_field(&parts, &part)) {
        if (part.number == 4) {
            made->operator_of = field_text(&parts, part.content);
        } else if (part.number == 1) {
            made->inputs.at[made->inputs.count++] = field_text(&parts, part.content);
        } else if (part.number == 2) {
            made->outputs.at[made->outputs.count++] = field_text(&parts, part.content);
        } else if (part.number == 5) {
            read_attribute(by, part.content, made);
        }
    }
    return made;
}

const constant *attribute_of(const node *of, const char *name)
{
    const text wanted = text_of(name);
    for (const attribute *one = of->attributes; one != NULL; one = one->before) {
        if (text_equal(one->name, wanted)) {
            return &one->numbers;
        }
    }
    return NULL;
}

bool is_one_of(text name, const char *const *known)
{
    for (; *known != NULL; known++) {
        if (text_equal(name, text_of(*known))) {
            return true;
        }
    }
    return false;
}

static double apply(text operator_of, double a, double b)
{
    switch (operator_of.data[0]) {
    case 'A':
        return a + b;
    case 'S':
        return a - b;
    case 'D':
        return b != 0 ? a / b : HUGE_VAL;
    case 'P':
        return fabs(b) <= FOLLOWED ? pow(a, b) : HUGE_VAL;
    default:
        if (text_equal(operator_of, TEXT("Mul"))) {
            return a * b;
        }
        return text_equal(operator_of, TEXT("Max")) ? (b > a ? b : a) : (b < a ? b : a);
    }
}

static constant pairwise(const work *by, text operator_of, constant one, constant two)
{
    constant made = {NULL, 0};
    if (one.count == 0 || two.count == 0 || (one.count != two.count && one.count != 1 && two.count != 1)) {
        return made;
    }
    made.count = one.count > two.count ? one.count : two.count;
    made.at = take(by->of, made.count, sizeof *made.at);
    for (size_t i = 0; i < made.count; i++) {
        made.at[i] = apply(operator_of, one.at[i % one.count], two.at[i % two.count]);
    }
    return made;
}

constant value_of(work *by, const node *of, const constant *read)
{
    static const char *const same[] = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze", NULL};
    static const char *const pairs[] = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", NULL};
    const constant none = {NULL, 0};
    constant made = none;
    if (text_equal(of->operator_of, TEXT("Constant"))) {
        text name;
        if (of->has_tensor) {
            return read_tensor(by, of->tensor, &name);
        }
        const constant *many = attribute_of(of, "value_ints"), *one = attribute_of(of, "value_int");
        return many != NULL && many->count > 0 ? *many : one != NULL ? *one : none;
    }
    if (is_one_of(of->operator_of, same)) {
        return of->inputs.count > 0 ? read[0] : none;
    }
    if (is_one_of(of->operator_of, pairs)) {
        return of->inputs.count > 1 ? pairwise(by, of->operator_of, read[0], read[1]) : none;
    }
    if (text_equal(of->operator_of, TEXT("Concat"))) {
        for (size_t i = 0; i < of->inputs.count; i++) {
            if (read[i].at == NULL) {
                return none;
            }
            made.count += read[i].count;
        }
        if (made.count > FOLLOWED) {
            return none;
        }
        made.at = take(by->of, made.count + 1, sizeof *made.at);
        for (size_t i = 0, done = 0; i < of->inputs.count; done += read[i++].count) {
            memcpy(made.at + done, read[i].at, read[i].count * sizeof *made.at);
        }
    }
    return made;
}
