/* Reads how a detector's output becomes boxes. */
#include "manifest_sections.h"

static int64_t points(int64_t size, int64_t stride)
{
    return (size + stride - 1) / stride;
}

/* A whole number from 1 to `most`, or the refusal. */
static int64_t counted(check *of, const json *value, int64_t most, const key *at)
{
    if (value->kind != JSON_WHOLE || value->whole < 1 || value->whole > most) {
        refuse_key(of, MTLC_POSTPROCESS, at, "must be whole, from 1 to %lld", (long long)most);
    }
    return value->whole;
}

static void check_share(check *of, const json *table, const char *name, const key *at)
{
    const json *value = json_get(table, name);
    if (value != NULL && ((value->kind != JSON_WHOLE && value->kind != JSON_NUMBER) ||
                          !(value->number >= 1e-4 && value->number <= 1))) {
        refuse_key(of, MTLC_POSTPROCESS, at, "must have %s between 0.0001 and 1", name);
    }
}

detection *read_postprocess(check *of, const json *value, const key *at)
{
    enum { MAX_SIDE = 1 << 14, MAX_POINTS = 1 << 20, MAX_BOXES = 1 << 12, MAX_CLASS_NAME = 200 };
    static const char *const known[] = {"kind", "size", "strides", "encoding", "objectness",
                                        "score", "iou", "most", "names", NULL};
    detection *made = take(of, 1, sizeof *made);
    be_table(of, value, at);
    be_known_keys(of, value, at, known, MTLC_POSTPROCESS);
    const json *kind = json_get(value, "kind"), *size = json_get(value, "size"), *strides = json_get(value, "strides");
    const json *encoding = json_get(value, "encoding"), *objectness = json_get(value, "objectness");
    const json *most = json_get(value, "most"), *names_of = json_get(value, "names");
    if (kind == NULL || size == NULL || strides == NULL || kind->kind != JSON_TEXT ||
        !text_equal(kind->content, TEXT("detection"))) {
        refuse_key(of, MTLC_POSTPROCESS, at, "must have kind 'detection', size and strides");
    }
    if (size->kind != JSON_LIST || size->count != 2 || strides->kind != JSON_LIST || strides->count == 0) {
        refuse_key(of, MTLC_POSTPROCESS, at, "must have a size [height, width] and strides");
    }
    made->height = counted(of, size->first, MAX_SIDE, at);
    made->width = counted(of, size->first->next, MAX_SIDE, at);
    /* A stride is at most 2^14 and there once: of more than that two are alike. */
    uint8_t *seen = take(of, MAX_SIDE + 1, 1);
    for (const json *one = strides->first; one != NULL; one = one->next) {
        const int64_t stride = counted(of, one, MAX_SIDE, at);
        if (seen[stride]++) {
            refuse_key(of, MTLC_POSTPROCESS, at, "lists a stride twice");
        }
        made->anchors += points(made->height, stride) * points(made->width, stride);
    }
    if (encoding != NULL && (encoding->kind != JSON_TEXT || (!text_equal(encoding->content, TEXT("distances")) &&
                                                             !text_equal(encoding->content, TEXT("center_size"))))) {
        refuse_key(of, MTLC_POSTPROCESS, at, "has an unknown encoding");
    }
    if (objectness != NULL && objectness->kind != JSON_TRUE && objectness->kind != JSON_FALSE) {
        refuse_key(of, MTLC_POSTPROCESS, at, "must have objectness true or false");
    }
    made->box_columns = objectness != NULL && objectness->kind == JSON_FALSE ? 4 : 5;
    check_share(of, value, "score", at);
    check_share(of, value, "iou", at);
    if (most != NULL) {
        counted(of, most, MAX_BOXES, at);
    }
    if (names_of != NULL && names_of->kind != JSON_NULL) {
        made->named = true;
        if (names_of->kind != JSON_LIST) {
            refuse_key(of, MTLC_POSTPROCESS, at, "must have a list of names");
        }
        for (const json *one = names_of->first; one != NULL; one = one->next, made->name_count++) {
            if (one->kind != JSON_TEXT || one->content.length == 0 || text_characters(one->content) > MAX_CLASS_NAME) {
                refuse_key(of, MTLC_POSTPROCESS, at, "must have names of 1 to 200 characters");
            }
        }
    }
    if (made->anchors > MAX_POINTS) {
        refuse_key(of, MTLC_POSTPROCESS, at, "gives %lld points", (long long)made->anchors);
    }
    return made;
}
