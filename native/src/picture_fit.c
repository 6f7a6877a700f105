/* Fits pictures into an input of another size, as the Python runtime's picture_fit.py does, to the bit. */
#include "picture_fit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* For each of `count` values the places that it is made of, and their weights. */
typedef struct taps {
    int64_t each;
    int64_t *places;
    float *weights;
} taps;

/* The sum of up to 128 numbers in the order in which NumPy makes it; more have rounding to spare in float32. */
static double sum_of(const double *values, int64_t count)
{
    double part[8], found = 0;
    int64_t done = 1; /* the first one is added last */
    if (count > 8) {
        memcpy(part, values + 1, sizeof part);
        for (done = 9; done + 8 <= count; done += 8) {
            for (int i = 0; i < 8; i++) {
                part[i] += values[done + i];
            }
        }
        found = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
    }
    for (; done < count; done++) {
        found += values[done];
    }
    return values[0] + found;
}

static void free_taps(taps *of)
{
    free(of->places);
    free(of->weights);
}

/* A triangle that is as wide as the places that fall together, and at least two, around the middle of each value. */
static bool make_taps(taps *made, int64_t count, int64_t available)
{
    const double scale = (double)available / (double)count, width = scale > 1 ? scale : 1;
    made->each = (int64_t)ceil(2 * width) + 1;
    made->places = malloc((size_t)(count * made->each) * sizeof *made->places);
    made->weights = malloc((size_t)(count * made->each) * sizeof *made->weights);
    double *weights = malloc((size_t)made->each * sizeof *weights);
    const bool good = made->places != NULL && made->weights != NULL && weights != NULL;
    for (int64_t i = 0; good && i < count; i++) {
        const double centre = ((double)i + 0.5) * scale;
        const int64_t first = (int64_t)floor(centre - width + 0.5);
        for (int64_t j = 0; j < made->each; j++) {
            const int64_t place = first + j;
            const double weight = 1 - fabs(((double)place + 0.5 - centre) / width);
            weights[j] = place >= 0 && place < available && weight > 0 ? weight : 0;
            made->places[i * made->each + j] = place < 0 ? 0 : place >= available ? available - 1 : place;
        }
        double total = sum_of(weights, made->each);
        for (int64_t j = 0; total == 0 && j < made->each; j++) {
            weights[j] = 1;
        }
        total = total == 0 ? (double)made->each : total;
        for (int64_t j = 0; j < made->each; j++) {
            made->weights[i * made->each + j] = (float)(weights[j] / total);
        }
    }
    free(weights);
    return good;
}

/* Resizes the rows of (outer, available, inner) to (outer, count, inner). */
static void sample(const taps *by, const float *from, int64_t outer, int64_t available, int64_t inner, int64_t count,
                   float *to)
{
    for (int64_t o = 0; o < outer; o++) {
        for (int64_t i = 0; i < count; i++, to += inner) {
            const int64_t *places = by->places + i * by->each;
            const float *weights = by->weights + i * by->each;
            for (int64_t k = 0; k < inner; k++) {
                float found = from[(o * available + places[0]) * inner + k] * weights[0];
                for (int64_t j = 1; j < by->each; j++) {
                    found = found + from[(o * available + places[j]) * inner + k] * weights[j];
                }
                to[k] = found;
            }
        }
    }
}

/* The picture in another size, in floats; NULL where there is no memory. The caller frees it. */
static float *resize(const pixels *from, int64_t height, int64_t width)
{
    const int64_t row = from->width * from->channels;
    float *made = malloc((size_t)(from->height * row) * sizeof *made);
    for (int64_t i = 0; made != NULL && i < from->height * row; i++) {
        made[i] = (float)from->at[i];
    }
    if (made != NULL && height != from->height) {
        taps by = {0};
        float *next = malloc((size_t)(height * row) * sizeof *next);
        const bool good = make_taps(&by, height, from->height) && next != NULL;
        if (good) {
            sample(&by, made, 1, from->height, row, height, next);
        }
        free_taps(&by);
        free(made);
        made = good ? next : (free(next), NULL);
    }
    if (made != NULL && width != from->width) {
        taps by = {0};
        float *next = malloc((size_t)(height * width * from->channels) * sizeof *next);
        const bool good = make_taps(&by, width, from->width) && next != NULL;
        if (good) {
            sample(&by, made, height, from->width, from->channels, width, next);
        }
        free_taps(&by);
        free(made);
        made = good ? next : (free(next), NULL);
    }
    return made;
}

static int64_t within(double size, int64_t most)
{
    const double rounded = rint(size);
    return rounded < 1 ? 1 : rounded > (double)most ? most : (int64_t)rounded;
}

bool fit_picture(const pixels *from, int64_t height, int64_t width, resize_kind how, uint8_t fill, uint8_t *target)
{
    int64_t inner_height = height, inner_width = width, top = 0, left = 0;
    if (how != RESIZE_STRETCH) {
        const double tall = (double)height / (double)from->height, wide = (double)width / (double)from->width;
        const double scale = wide < tall ? wide : tall;
        inner_height = within((double)from->height * scale, height);
        inner_width = within((double)from->width * scale, width);
        top = how == RESIZE_PAD_END ? 0 : (height - inner_height) / 2;
        left = how == RESIZE_PAD_END ? 0 : (width - inner_width) / 2;
    }
    float *inner = resize(from, inner_height, inner_width);
    if (inner == NULL) {
        return false;
    }
    memset(target, fill, (size_t)(height * width * from->channels));
    const int64_t row = inner_width * from->channels;
    for (int64_t y = 0; y < inner_height; y++) {
        uint8_t *to = target + ((top + y) * width + left) * from->channels;
        for (int64_t x = 0; x < row; x++) {
            to[x] = (uint8_t)rintf(inner[y * row + x]);
        }
    }
    free(inner);
    return true;
}
