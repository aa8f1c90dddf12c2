/* Many tokens through AMX: dense bfloat16 tiles of a few rows are made in the cache and meet all tokens there. Knows no weight format: the
   including file defines `dense_tiles` first. Included after common.h, for machines with tiles. */

#define PANEL 2   /* row blocks whose dense tiles are made at a time: 2 x 2 tiles of sums use every tile loaded twice */
#define SPAN 16   /* token tiles a pass over the weights */

/* Token tiles of x: 16 tokens by 32 columns, 1 KiB each, token tile after token tile; what is missing is zero. */
static void token_tiles(const Form *f, const uint16_t *x, int64_t tokens, int64_t tile, uint16_t *to) {
    for (int64_t q = 0; q < f->groups; q++)
        for (int64_t c = 0; c < f->padded; c += STEP, to += 512)
            for (int64_t t = 0; t < 16; t++) {
                int64_t count = tile * 16 + t < tokens ? f->group - c : 0;
                __mmask32 keep = count >= 32 ? 0xFFFFFFFF : count > 0 ? (1u << count) - 1 : 0;
                _mm512_store_si512(to + t * 32, _mm512_maskz_loadu_epi16(keep, x + (tile * 16 + t) * f->columns + q * f->group + c));
            }
}

typedef struct {
    const Form *f;
    const uint8_t *data;
    const uint16_t *tiles; /* token tiles of all steps */
    float *sums;           /* token tile, row block: 1 KiB each */
    X *y;
    int64_t steps, tokens, blocks;
} Many;

/* Token tiles first .. last times steps from .. to of row blocks block .. block + width. */
static void panel(const Many *m, uint16_t *dense, int64_t block, int width, int64_t first, int64_t last, int64_t from, int64_t to) {
    int64_t wide = to - from;
    for (int i = 0; i < width; i++) dense_tiles(m->f, m->data, block + i, from, to, dense + i * wide * 512);
    for (int64_t t = first; t < last; t += 2) {
        int two = t + 1 < last;
        const uint16_t *a = m->tiles + (t * m->steps + from) * 512, *next = two ? a + m->steps * 512 : a;
        const uint16_t *b = dense, *right = width > 1 ? dense + wide * 512 : dense;
        float *sum = m->sums + ((t - first) * m->blocks + block) * 256, *below = sum + m->blocks * 256;
        if (from) {
            _tile_loadd(4, sum, 64);
            if (width > 1) _tile_loadd(5, sum + 256, 64);
            if (two) _tile_loadd(6, below, 64);
            if (two && width > 1) _tile_loadd(7, below + 256, 64);
        } else {
            _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);
        }
        for (int64_t i = 0; i < wide; i++) {
            _tile_loadd(0, a + i * 512, 64);
            _tile_loadd(1, b + i * 512, 64);
            _tile_dpbf16ps(4, 0, 1);
            _tile_loadd(2, right + i * 512, 64);
            _tile_dpbf16ps(5, 0, 2);
            _tile_loadd(3, next + i * 512, 64);
            _tile_dpbf16ps(6, 3, 1);
            _tile_dpbf16ps(7, 3, 2);
        }
        _tile_stored(4, sum, 64);
        if (width > 1) _tile_stored(5, sum + 256, 64);
        if (two) _tile_stored(6, below, 64);
        if (two && width > 1) _tile_stored(7, below + 256, 64);
        if (to < m->steps) continue;
        for (int64_t row = 0; row < 32 && t * 16 + row < m->tokens; row++)
            for (int i = 0; i < width; i++) {
                VF value = LOADF((row < 16 ? sum : below) + i * 256 + row % 16 * 16);
                put_block(m->f, m->y, t * 16 + row, block + i, &value);
            }
    }
}

/* Many tokens: dense bfloat16 tiles of a panel of rows are made in the second cache and meet SPAN token tiles there. The columns are
   taken CHUNK steps at a time, so that SPAN token tiles of a chunk stay in that cache too. */
static int run_many(const uint8_t *data, const X *x, X *y, int64_t tokens, int threads) {
    const Form *f = (const Form *)data;
    int64_t steps = f->groups * f->padded / STEP, blocks = (f->rows + BLOCK - 1) / BLOCK, all = (tokens + 15) / 16;
    int64_t span = all < SPAN ? all : SPAN, chunk = steps < CHUNK ? steps : CHUNK;
    size_t a = (size_t)(all * steps) * 1024, c = (size_t)((span + 1) * (blocks + 1)) * 1024, d = (size_t)(PANEL * chunk) * 1024;
    uint8_t *room = scratch(a + c + d * (size_t)threads);
    if (!room) return 1;
    Many m = {f, data, (const uint16_t *)room, (float *)(room + a), y, steps, tokens, blocks};
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int thread = 0, team = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num();
        team = omp_get_num_threads();
#endif
        for (int64_t t = all * thread / team; t < all * (thread + 1) / team; t++)
            token_tiles(f, x, tokens, t, (uint16_t *)room + t * steps * 512);
        configure(16);
        uint16_t *dense = (uint16_t *)(room + a + c + d * (size_t)thread);
        int64_t panels = (blocks + PANEL - 1) / PANEL;
#pragma omp barrier
        for (int64_t t = 0; t < all; t += span)
            for (int64_t from = 0; from < steps; from += chunk)
                for (int64_t i = panels * thread / team; i < panels * (thread + 1) / team; i++) {
                    int width = (int)(blocks - i * PANEL < PANEL ? blocks - i * PANEL : PANEL);
                    int64_t to = from + chunk < steps ? from + chunk : steps, last = t + span < all ? t + span : all;
                    panel(&m, dense, i * PANEL, width, t, last, from, to);
                }
        _tile_release();
    }
    return 0;
}
