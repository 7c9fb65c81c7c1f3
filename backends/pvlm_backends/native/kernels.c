/* A decoder's passes over few tokens, for x86-64 with AVX2, FMA and F16C.
 *
 * The sums of a token have an order of their own: an output of a product is one accumulator over the inputs, a dot
 * product eight lanes, attention goes by the rows of the cache. How many tokens share a pass, and how many threads, only
 * decides what is computed at the same time. So a token's logits are the same bits in a pass over one token and in one
 * over sixteen. The compiler is kept from fusing a product and a sum on its own (see library.py).
 *
 * Sizes: width, inner width and head dimension are multiples of 8.
 */

#include "products.h"

#include <math.h>
#include <string.h>

#define ROWS 64      /* of the cache, for all queries while they are in the nearest cache */
#define STRIP 64     /* dimensions of values that are summed at the same time */

/* `qk_norm`: a row of `head_dim` for each head of queries, then of keys; NULL where they are not normalised. */
typedef struct {
    Matrix qkv, output, gate_up, down;
    const float *input_norm, *post_norm, *qk_norm;
} Layer;

/* `embedding`: `vocabulary` x `width` where the head shares it; where it is NULL, the head is a matrix of its own. */
typedef struct {
    const Layer *layers;
    Matrix head;
    const float *embedding, *norm;
    int64_t vocabulary, width, heads, kv_heads, head_dim, inner;
    double epsilon;
    int64_t threads;
} Decoder;

/* Rows of a cache. `keys`: of the first layer; its values, and the other layers' keys and values, follow. Each is
 * `kv_heads` x `room` x `head_dim`, of which a pass sees the first `rows`. */
typedef struct {
    float *keys;
    int64_t room, rows;
} Segment;

/* Tokens of one session. They see the rows of its segments, one segment after another, and themselves, and are written
 * to the last segment after its rows. */
typedef struct {
    const Segment *segments;
    int64_t count, tokens;
} Part;

/* `tokens`: of all parts. `scratch`: scratch_size() floats. */
typedef struct {
    const Part *parts;
    int64_t count, tokens;
    float *scratch;
} Pass;

/* ---- What lies between products ---- */

inlined float sum_lanes(__m256 v)
{
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* e^x for x <= 88, to about two units in the last place; 0 below -87. Cephes' expf: x = n ln 2 + r, |r| <= ln(2) / 2. */
inlined __m256 exponential(__m256 x)
{
    const __m256 least = _mm256_set1_ps(-87.0f);
    const __m256 kept = _mm256_cmp_ps(x, least, _CMP_GE_OQ);
    x = _mm256_min_ps(_mm256_max_ps(x, least), _mm256_set1_ps(88.0f));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(power)), kept);
}

/* Root-mean-square normalisation of `width` numbers; `normed` may be `x` itself. */
inlined void normalise_one(const float *x, const float *weight, int64_t width, double epsilon, float *normed)
{
    __m256 squares = _mm256_setzero_ps();
    for (int64_t i = 0; i < width; i += LANES) {
        const __m256 part = _mm256_loadu_ps(x + i);
        squares = _mm256_fmadd_ps(part, part, squares);
    }
    const __m256 scale = _mm256_set1_ps(1.0f / sqrtf(sum_lanes(squares) / (float)width + (float)epsilon));
    for (int64_t i = 0; i < width; i += LANES)
        _mm256_storeu_ps(normed + i,
                         _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), scale), _mm256_loadu_ps(weight + i)));
}

/* The same for each token. */
static void normalise(const float *hidden, const float *weight, int64_t tokens, int64_t width, double epsilon,
                      float *normed)
{
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; t++)
        normalise_one(hidden + t * width, weight, width, epsilon, normed + t * width);
}

/* gate and up (`tokens` x 2 `inner`) to silu(gate) * up (`tokens` x `inner`). */
static void gate(const float *gate_up, int64_t tokens, int64_t inner, float *out)
{
    const __m256 one = _mm256_set1_ps(1.0f), zero = _mm256_setzero_ps();
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < inner; i += LANES) {
            const __m256 g = _mm256_loadu_ps(gate_up + 2 * t * inner + i);
            const __m256 up = _mm256_loadu_ps(gate_up + (2 * t + 1) * inner + i);
            const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, exponential(_mm256_sub_ps(zero, g))));
            _mm256_storeu_ps(out + t * inner + i, _mm256_mul_ps(silu, up));
        }
}

/* Turn pairs of neighbouring dimensions by (cos, sin). */
inlined void rotate(const float *from, const float *rotation, int64_t head_dim, float *to)
{
    for (int64_t i = 0; i < head_dim; i += LANES) {
        const __m256 pairs = _mm256_loadu_ps(from + i), turns = _mm256_loadu_ps(rotation + i);
        const __m256 swapped = _mm256_permute_ps(pairs, 0xB1);
        const __m256 crossed = _mm256_mul_ps(swapped, _mm256_movehdup_ps(turns));
        _mm256_storeu_ps(to + i, _mm256_fmaddsub_ps(pairs, _mm256_moveldup_ps(turns), crossed));
    }
}

/* The dot products of a query with eight rows, of which `count` exist: the last one replaces the missing ones. */
inlined __m256 dots(const float *query, const float *rows, int64_t size, int64_t count)
{
    __m256 sums[LANES];
    unrolled for (int r = 0; r < LANES; r++)
        sums[r] = _mm256_setzero_ps();
    if (count >= LANES)
        for (int64_t i = 0; i < size; i += LANES) {
            const __m256 part = _mm256_loadu_ps(query + i);
            unrolled for (int r = 0; r < LANES; r++)
                sums[r] = _mm256_fmadd_ps(part, _mm256_loadu_ps(rows + r * size + i), sums[r]);
        }
    else
        for (int64_t i = 0; i < size; i += LANES) {
            const __m256 part = _mm256_loadu_ps(query + i);
            unrolled for (int r = 0; r < LANES; r++)
                sums[r] = _mm256_fmadd_ps(part, _mm256_loadu_ps(rows + (r < count ? r : count - 1) * size + i), sums[r]);
        }
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(sums[4], sums[5]), _mm256_hadd_ps(sums[6], sums[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

/* ---- Attention ---- */

/* Have memory sent on its way to the nearest cache. */
inlined void fetch(const float *from, int64_t count)
{
    for (int64_t i = 0; i < count; i += 64 / sizeof(float))
        _mm_prefetch((const char *)(from + i), _MM_HINT_T0);
}

static int64_t lanes_up(int64_t count)
{
    return (count + LANES - 1) / LANES * LANES;
}

/* Add rows `begin` up to `end` of 8 * `vectors` dimensions, each with its weight, to `out`, which the `first` begin. */
inlined void weigh(const int vectors, const float *weights, const float *values, int64_t dim, int64_t begin, int64_t end,
                   int first, int leading, float *out)
{
    __m256 sums[LANES];
    unrolled for (int v = 0; v < vectors; v++)
        sums[v] = first ? _mm256_setzero_ps() : _mm256_loadu_ps(out + v * LANES);
    for (int64_t r = begin; r < end; r++) {
        const __m256 weight = _mm256_broadcast_ss(weights + r);
        if (leading)
            fetch(values + (r + ROWS) * dim, vectors * LANES);
        unrolled for (int v = 0; v < vectors; v++)
            sums[v] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(values + r * dim + v * LANES), sums[v]);
    }
    unrolled for (int v = 0; v < vectors; v++)
        _mm256_storeu_ps(out + v * LANES, sums[v]);
}

/* Rows that all tokens of a part see. */
static int64_t rows_before(const Part *part)
{
    int64_t rows = 0;
    for (int64_t s = 0; s < part->count; s++)
        rows += part->segments[s].rows;
    return rows;
}

/* Token t of a part sees all rows before it, t tokens, and itself. Query heads that share keys stand together.
 *
 * queries: heads x tokens x head_dim. scores: heads x tokens x room for all rows. attended: tokens x heads x head_dim. */
static void attend(const Decoder *decoder, int64_t index, const Part *part, const float *queries, float *scores,
                   float *attended)
{
    const int64_t dim = decoder->head_dim, tokens = part->tokens, row = rows_before(part), span = lanes_up(row + tokens);
    const int64_t shared = decoder->heads / decoder->kv_heads * tokens; /* queries of a head of keys */
    const int64_t strips = dim / STRIP, rest = dim % STRIP / LANES;
    for (int64_t s = 0, before = 0; s < part->count; before += part->segments[s++].rows) {
        const Segment *segment = part->segments + s;
        const int64_t rows = segment->rows + (s == part->count - 1 ? tokens : 0), blocks = (rows + ROWS - 1) / ROWS;
        const float *keys = segment->keys + 2 * index * decoder->kv_heads * segment->room * dim;
#pragma omp for schedule(static) nowait
        for (int64_t work = 0; work < decoder->kv_heads * blocks; work++) {
            const int64_t head = work / blocks, begin = work % blocks * ROWS;
            const int64_t end = begin + ROWS < rows ? begin + ROWS : rows;
            for (int64_t q = head * shared; q < (head + 1) * shared; q++)
                for (int64_t r = begin; r < end; r += LANES) {
                    const float *key = keys + (head * segment->room + r) * dim;
                    if (q == head * shared)
                        fetch(key + ROWS * dim, LANES * dim);
                    const int64_t count = end - r < LANES ? end - r : LANES;
                    float found[LANES];
                    _mm256_storeu_ps(found, dots(queries + q * dim, key, dim, end - r));
                    memcpy(scores + q * span + before + r, found, count * sizeof(float));
                }
        }
    }
#pragma omp barrier
    const float scale = 1.0f / sqrtf((float)dim);
#pragma omp for schedule(static)
    for (int64_t q = 0; q < decoder->heads * tokens; q++) {
        float *score = scores + q * span;
        const int64_t seen = row + q % tokens + 1;
        for (int64_t r = seen; r < lanes_up(seen); r++)
            score[r] = -INFINITY;
        __m256 most = _mm256_loadu_ps(score);
        for (int64_t r = LANES; r < seen; r += LANES)
            most = _mm256_max_ps(most, _mm256_loadu_ps(score + r));
        float lanes[LANES], largest;
        _mm256_storeu_ps(lanes, most);
        largest = lanes[0];
        for (int i = 1; i < LANES; i++)
            largest = lanes[i] > largest ? lanes[i] : largest;
        __m256 sum = _mm256_setzero_ps();
        for (int64_t r = 0; r < seen; r += LANES) {
            const __m256 below = _mm256_sub_ps(_mm256_loadu_ps(score + r), _mm256_set1_ps(largest));
            const __m256 weight = exponential(_mm256_mul_ps(below, _mm256_set1_ps(scale)));
            _mm256_storeu_ps(score + r, weight);
            sum = _mm256_add_ps(sum, weight);
        }
        const __m256 share = _mm256_set1_ps(1.0f / sum_lanes(sum));
        for (int64_t r = 0; r < seen; r += LANES)
            _mm256_storeu_ps(score + r, _mm256_mul_ps(_mm256_loadu_ps(score + r), share));
    }
#pragma omp for schedule(static)
    for (int64_t work = 0; work < decoder->kv_heads * (strips + rest); work++) {
        const int64_t head = work / (strips + rest), strip = work % (strips + rest);
        const int64_t from = strip < strips ? strip * STRIP : strips * STRIP + (strip - strips) * LANES;
        for (int64_t s = 0, before = 0; s < part->count; before += part->segments[s++].rows) {
            const Segment *segment = part->segments + s;
            const int64_t rows = segment->rows + (s == part->count - 1 ? tokens : 0);
            const int64_t size = decoder->kv_heads * segment->room * dim;
            const float *value = segment->keys + (2 * index + 1) * size + head * segment->room * dim + from;
            for (int64_t begin = 0; begin < rows; begin += ROWS)
                for (int64_t q = head * shared; q < (head + 1) * shared; q++) {
                    const int64_t seen = row + q % tokens + 1 - before, most = seen < rows ? seen : rows;
                    const int64_t end = begin + ROWS < most ? begin + ROWS : most;
                    const float *weight = scores + q * span + before;
                    float *out = attended + (q % tokens * decoder->heads + q / tokens) * dim + from;
                    const int first = before + begin == 0, leading = q == head * shared;
                    if (strip < strips)
                        weigh(STRIP / LANES, weight, value, dim, begin, end, first, leading, out);
                    else
                        weigh(1, weight, value, dim, begin, end, first, leading, out);
                }
        }
    }
}

/* ---- Passes ---- */

/* Floats that a part needs for its scores, also when its last segment is full. */
static int64_t scores_size(const Decoder *decoder, const Part *part)
{
    const Segment *last = part->segments + part->count - 1;
    return part->tokens * decoder->heads * lanes_up(rows_before(part) - last->rows + last->room);
}

/* Floats that a pass needs for itself. */
int64_t scratch_size(const Decoder *decoder, const Pass *pass)
{
    const int64_t attended = decoder->heads * decoder->head_dim, widest = 3 * decoder->inner;
    const int64_t projected = attended + 2 * decoder->kv_heads * decoder->head_dim;
    int64_t size = pass->tokens * (decoder->width + projected + 2 * attended + widest);
    for (int64_t p = 0; p < pass->count; p++)
        size += scores_size(decoder, pass->parts + p);
    return size;
}

static void run_layer(const Decoder *decoder, int64_t index, const Pass *pass, const float *rotation, float *hidden)
{
    const Layer *layer = decoder->layers + index;
    const int64_t tokens = pass->tokens, dim = decoder->head_dim, heads = decoder->heads, kv_heads = decoder->kv_heads;
    const int64_t projected = (heads + 2 * kv_heads) * dim;
    float *normed = pass->scratch, *qkv = normed + tokens * decoder->width, *queries = qkv + tokens * projected;
    float *attended = queries + tokens * heads * dim, *gate_up = attended + tokens * heads * dim;
    float *gated = gate_up + 2 * tokens * decoder->inner, *scores = gated + tokens * decoder->inner;

    normalise(hidden, layer->input_norm, tokens, decoder->width, decoder->epsilon, normed);
    product(&layer->qkv, normed, tokens, qkv, 0);
    for (int64_t p = 0, before = 0; p < pass->count; before += pass->parts[p++].tokens) {
        const Part *part = pass->parts + p;
        const Segment *own = part->segments + part->count - 1;
        const int64_t size = kv_heads * own->room * dim;
        float *keys = own->keys + 2 * index * size, *values = keys + size, *query = queries + before * heads * dim;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < part->tokens; t++) {
            float *from = qkv + (before + t) * projected;
            const float *turn = rotation + (before + t) * dim;
            for (int64_t h = 0; layer->qk_norm && h < heads + kv_heads; h++)
                normalise_one(from + h * dim, layer->qk_norm + h * dim, dim, decoder->epsilon, from + h * dim);
            for (int64_t h = 0; h < heads; h++)
                rotate(from + h * dim, turn, dim, query + (h * part->tokens + t) * dim);
            for (int64_t h = 0; h < kv_heads; h++) {
                const int64_t place = (h * own->room + own->rows + t) * dim;
                rotate(from + (heads + h) * dim, turn, dim, keys + place);
                memcpy(values + place, from + (heads + kv_heads + h) * dim, dim * sizeof(float));
            }
        }
        attend(decoder, index, part, query, scores, attended + before * heads * dim);
        scores += scores_size(decoder, part);
    }
    product(&layer->output, attended, tokens, hidden, 1);
    normalise(hidden, layer->post_norm, tokens, decoder->width, decoder->epsilon, normed);
    product(&layer->gate_up, normed, tokens, gate_up, 0);
    gate(gate_up, tokens, decoder->inner, gated);
    product(&layer->down, gated, tokens, hidden, 1);
}

/* Run layers `first` up to `last` (without it) over the tokens of all parts, one part after another.
 *
 * hidden: tokens x width, overwritten. rotation: tokens x head_dim, as (cos, sin) of each pair of dimensions. */
void run_layers(const Decoder *decoder, const Pass *pass, int64_t first, int64_t last, const float *rotation,
                float *hidden)
{
#pragma omp parallel num_threads(decoder->threads) if (decoder->threads > 1)
    for (int64_t index = first; index < last; index++)
        run_layer(decoder, index, pass, rotation, hidden);
}

/* logits: tokens x vocabulary, from the last layer's output. */
void run_head(const Decoder *decoder, const Pass *pass, const float *hidden, float *logits)
{
    float *normed = pass->scratch;
    const int64_t width = decoder->width, words = decoder->vocabulary, tokens = pass->tokens;
#pragma omp parallel num_threads(decoder->threads) if (decoder->threads > 1)
    {
        normalise(hidden, decoder->norm, tokens, width, decoder->epsilon, normed);
        if (!decoder->embedding)
            product(&decoder->head, normed, tokens, logits, 0);
        else
#pragma omp for schedule(static)
            for (int64_t word = 0; word < words; word += LANES)
                for (int64_t t = 0; t < tokens; t++) {
                    float found[LANES];
                    const int64_t count = words - word < LANES ? words - word : LANES;
                    _mm256_storeu_ps(found, dots(normed + t * width, decoder->embedding + word * width, width, count));
                    memcpy(logits + t * words + word, found, count * sizeof(float));
                }
    }
}

/* x (tokens x inputs) times the matrix, as `product`. */
void multiply(const Matrix *matrix, int64_t threads, const float *x, int64_t tokens, float *y, int32_t add)
{
#pragma omp parallel num_threads(threads) if (threads > 1)
    product(matrix, x, tokens, y, add);
}
