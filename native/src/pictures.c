/* Turns pictures into inputs, by the bundle's preprocessing. */
#include "session.h"

#include <math.h>
#include <stdlib.h>

/* ITU-R BT.601 */
static const float LUMA[3] = {0.299f, 0.587f, 0.114f};

static float grey_of(const uint8_t *at)
{
    return (float)at[0] * LUMA[0] + (float)at[1] * LUMA[1] + (float)at[2] * LUMA[2];
}

/* (pixel * scale - mean) / std of each channel, one plane after the other. */
static void normalise(const preprocessing *how, const pixels *from, float *target)
{
    const int made = how->color == COLOR_L ? 1 : 3;
    const int64_t plane = from->height * from->width;
    for (int c = 0; c < made; c++) {
        const float scale = how->scale / how->std[c], shift = how->mean[c] / how->std[c];
        const uint8_t *at = from->at;
        for (int64_t i = 0; i < plane; i++, at += from->channels) {
            const float pixel = from->channels > made ? grey_of(at) : (float)at[how->color == COLOR_BGR ? 2 - c : c];
            *target++ = pixel * scale - shift;
        }
    }
}

/* Grey of colours, rounded, for a picture that is resized. */
static uint8_t *make_grey(const pixels *from)
{
    const int64_t plane = from->height * from->width;
    uint8_t *made = malloc((size_t)plane);
    for (int64_t i = 0; made != NULL && i < plane; i++) {
        made[i] = (uint8_t)rintf(grey_of(from->at + 3 * i));
    }
    return made;
}

/* Resizes the picture to the input's size, then as `normalise`. */
static bool fit_and_normalise(const preprocessing *how, const pixels *from, int64_t height, int64_t width,
                              float *target)
{
    const bool to_grey = how->color == COLOR_L && from->channels == 3;
    pixels picture = *from;
    uint8_t *grey = to_grey ? make_grey(from) : NULL;
    if (grey != NULL) {
        picture.at = grey;
        picture.channels = 1;
    }
    uint8_t *fitted = malloc((size_t)(height * width * picture.channels));
    const bool good = fitted != NULL && (!to_grey || grey != NULL) &&
                      fit_picture(&picture, height, width, how->resize, how->fill, fitted);
    if (good) {
        normalise(how, &(pixels){height, width, picture.channels, fitted}, target);
    }
    free(grey);
    free(fitted);
    return good;
}

static bool fits(const shape *of, const int64_t sizes[4])
{
    bool good = of->rank == 4;
    for (int i = 0; good && i < 4; i++) {
        good = sizes[i] > 0 && (of->at[i] < 0 || of->at[i] == sizes[i]);
        for (int j = 0; good && j < i; j++) {
            good = of->at[i] >= 0 || of->at[j] >= 0 || !text_equal(of->named[i], of->named[j]) || sizes[i] == sizes[j];
        }
    }
    return good;
}

mtlc_code mtlc_preprocess(const mtlc_session *session, const uint8_t *picture, int64_t height, int64_t width,
                          int64_t channels, float *target, size_t bytes, mtlc_error *error)
{
    enum { MOST = 1 << 16 };
    if (session == NULL || picture == NULL || target == NULL) {
        return fail(error, MTLC_ARGUMENT, "the session, the picture or its target is NULL");
    }
    const manifest *in = session->bundle.manifest;
    const preprocessing *how = in->preprocessing;
    if (how == NULL) {
        return fail(error, MTLC_UNSUPPORTED, "%s: it has no preprocessing: feed arrays as the network takes them",
                    session->bundle.path.data);
    }
    if (in->inputs->dtype != MTLC_FLOAT32) {
        return fail(error, MTLC_UNSUPPORTED, "%s: this library prepares pictures for inputs in float32 only",
                    session->bundle.path.data);
    }
    const int made = how->color == COLOR_L ? 1 : 3;
    if (channels != 3 && (channels != 1 || made != 1)) {
        return fail(error, MTLC_INPUT, "a picture has %d channels, not %lld", made, (long long)channels);
    }
    if (height < 1 || width < 1 || height > MOST || width > MOST) {
        return fail(error, MTLC_INPUT, "a picture has 1 to %d pixels on a side", MOST);
    }
    /* A picture is resized where the one input has a size. */
    const shape *of = &in->inputs->shape;
    const bool sized = in->input_count == 1 && of->rank == 4 && of->at[2] > 0 && of->at[3] > 0;
    const int64_t sizes[4] = {1, made, sized ? of->at[2] : height, sized ? of->at[3] : width};
    if (!fits(of, sizes) || sizes[2] > MOST || sizes[3] > MOST) {
        return fail(error, MTLC_INPUT, "a picture does not fit the input %s", shown(in->inputs->name));
    }
    if (bytes != (size_t)(sizes[2] * sizes[3]) * (size_t)made * sizeof *target) {
        return fail(error, MTLC_ARGUMENT, "the target has %zu bytes, the input has others", bytes);
    }
    const pixels from = {height, width, channels, picture};
    if (height == sizes[2] && width == sizes[3]) {
        normalise(how, &from, target);
    } else if (!fit_and_normalise(how, &from, sizes[2], sizes[3], target)) {
        return fail(error, MTLC_MEMORY, "no memory left for a picture");
    }
    return MTLC_OK;
}
