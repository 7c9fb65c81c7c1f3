/* Products of few tokens, or many, with weights in panels. See kernels.c. */

#include <immintrin.h>
#include <stdint.h>

#define LANES 8
#define PANEL 16     /* outputs that lie side by side in a matrix */
#define BLOCK 6      /* tokens: 6 x 2 sums, 2 weights and an input take 15 of the 16 registers */
#define WIDE_FROM 13 /* tokens from which halves are widened once for all blocks */
#define WIDE_MOST (128 * 1024) /* weights of a panel for which there is room on the stack */

#define inlined static inline __attribute__((always_inline))
#define unrolled _Pragma("GCC unroll 16")

/* `inputs` x `outputs`, in panels of 16 outputs: the weights of the first input, of the second, ...; zeros fill the last
 * panel. Weights are floats or IEEE halves. `bias` may be NULL. */
typedef struct {
    const void *panels;
    const float *bias;
    int64_t inputs, outputs, halves;
} Matrix;

typedef struct {
    const char *panel; /* the first one */
    int64_t next;      /* bytes from one panel to the next */
    int64_t inputs, outputs, stride;
    const float *x, *bias;
    float *y;
    int add;
} Product;

inlined __m256 load(const char *panel, int64_t index, int halves)
{
    if (halves)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(panel + 2 * index)));
    return _mm256_loadu_ps((const float *)panel + index);
}

/* Put `tokens` x `count` sums, or as many of them as there are outputs, where they belong. */
static void finish(const Product *p, const float *sums, int64_t tokens, int64_t count)
{
    const int64_t outputs = count < p->outputs ? count : p->outputs;
    for (int64_t t = 0; t < tokens; t++) {
        float *y = p->y + t * p->stride;
        const float *onto = p->add ? y : p->bias;
        for (int64_t o = 0; o < outputs; o++)
            y[o] = sums[t * count + o] + (onto ? onto[o] : 0.0f);
    }
}

/* `tokens` by `panels`: as many sums as there are registers for, and at least eight, because one takes four cycles and
 * two can begin in each. */
inlined void tile(const int tokens, const int panels, const int halves, const Product *product)
{
    const Product p = *product;
    const int vectors = 2 * panels;
    __m256 sums[BLOCK][LANES];
    unrolled for (int t = 0; t < tokens; t++)
        unrolled for (int v = 0; v < vectors; v++)
            sums[t][v] = _mm256_setzero_ps();
    for (int64_t i = 0; i < p.inputs; i++) {
        __m256 weights[LANES];
        unrolled for (int n = 0; n < panels; n++)
            _mm_prefetch(p.panel + (panels + n) * p.next + i * PANEL * (halves ? 2 : 4), _MM_HINT_T0);
        unrolled for (int v = 0; v < vectors; v++)
            weights[v] = load(p.panel + v / 2 * p.next, i * PANEL + v % 2 * LANES, halves);
        unrolled for (int t = 0; t < tokens; t++) {
            const __m256 input = _mm256_broadcast_ss(p.x + t * p.inputs + i);
            unrolled for (int v = 0; v < vectors; v++)
                sums[t][v] = _mm256_fmadd_ps(input, weights[v], sums[t][v]);
        }
    }
    float found[tokens * vectors * LANES];
    unrolled for (int t = 0; t < tokens; t++)
        unrolled for (int v = 0; v < vectors; v++)
            _mm256_storeu_ps(found + (t * vectors + v) * LANES, sums[t][v]);
    finish(product, found, tokens, vectors * LANES);
}

inlined void tiles(int tokens, int panels, const int halves, const Product *p)
{
    switch (10 * tokens + panels) {
    case 14: tile(1, 4, halves, p); break;
    case 11: tile(1, 1, halves, p); break;
    case 22: tile(2, 2, halves, p); break;
    case 21: tile(2, 1, halves, p); break;
    case 31: tile(3, 1, halves, p); break;
    case 41: tile(4, 1, halves, p); break;
    case 51: tile(5, 1, halves, p); break;
    case 61: tile(6, 1, halves, p); break;
    }
}

static void multiply_panels(const Matrix *matrix, int64_t first, int panels, const float *x, int64_t tokens, float *y,
                            int add)
{
    const int64_t size = matrix->inputs * PANEL, output = first * PANEL;
    const int wide = matrix->halves && tokens >= WIDE_FROM && size <= WIDE_MOST;
    const int halves = matrix->halves && !wide;
    Product p = {
        .panel = (const char *)matrix->panels + first * size * (matrix->halves ? 2 : 4),
        .next = size * (halves ? 2 : 4),
        .inputs = matrix->inputs,
        .outputs = matrix->outputs - output,
        .stride = matrix->outputs,
        .bias = matrix->bias ? matrix->bias + output : NULL,
        .add = add,
    };
    if (wide) {
        float *widened = __builtin_alloca(size * sizeof(float));
        for (int64_t i = 0; i < size; i += LANES)
            _mm256_storeu_ps(widened + i, load(p.panel, i, 1));
        p.panel = (const char *)widened;
    }
    const int64_t blocks = (tokens + BLOCK - 1) / BLOCK;
    for (int64_t b = 0, t = 0; b < blocks; b++) {
        const int here = (int)((tokens - t) / (blocks - b));
        p.x = x + t * p.inputs;
        p.y = y + t * p.stride + output;
        if (halves)
            tiles(here, panels, 1, &p);
        else
            tiles(here, panels, 0, &p);
        t += here;
    }
}

/* x (`tokens` x inputs) times the matrix: with its bias into y (`tokens` x outputs), or, with `add`, without it onto y.
 * Called by all threads of a team, or by one. */
static void product(const Matrix *matrix, const float *x, int64_t tokens, float *y, int add)
{
    const int64_t all = (matrix->outputs + PANEL - 1) / PANEL;
    const int together = tokens == 1 ? 4 : tokens == 2 ? 2 : 1;
#pragma omp for schedule(static)
    for (int64_t group = 0; group < (all + together - 1) / together; group++) {
        const int64_t first = group * together;
        if (first + together <= all)
            multiply_panels(matrix, first, together, x, tokens, y, add);
        else
            for (int64_t panel = first; panel < all; panel++)
                multiply_panels(matrix, panel, 1, x, tokens, y, add);
    }
}
