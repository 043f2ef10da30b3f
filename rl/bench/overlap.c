/* The hot loop of rewards/chains.py, rewards/slabs.py and rewards/kernels.py again, in C: what a compiler makes of the
   same algorithm. Compiled on the spot by `polytrace bench rewards`, and compared with the Numba kernels, pixel by
   pixel and second by second. Answers of one ring; names and comments are those of the Python files. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 8, MAX_SLAB_CHAINS = 16 };

typedef struct {
    int64_t first, end, turn, place;
} Chain;

typedef struct {
    const double *left, *right; /* [places][height] */
    const int64_t *rows;        /* [places][2] */
    int64_t places, height;
} Table;

static int write_columns(double *restrict out, int64_t num, double x, double slope, double width) {
    int doubtful = 0;
    const int padded = (int)((num + LANES - 1) & ~(int64_t)(LANES - 1));
    for (int i = 0; i < padded; i++) {
        const double at = x + i * slope;
        double column = ceil(at + 1e-8);
        doubtful |= column != ceil(at - 1e-8);
        column = column > 0.0 ? column : 0.0;
        out[i] = column < width ? column : width;
    }
    return doubtful;
}

static double exact_column(const double *upper, const double *lower, int64_t row, double width) {
    const double dx = lower[0] - upper[0], dy = lower[1] - upper[1];
    const double at = upper[0] + (row + 0.5 - upper[1]) * dx / dy - 0.5;
    if (!(at > 0.0)) return 0.0;
    return at >= width ? width : ceil(at);
}

static int64_t add_chains(const double *v, int64_t n, const int32_t *row, const double *slope, double width,
                          double *columns, Chain *chains) {
    int64_t num = 0, place = 0, k = 0;
    while (k < n) {
        if (row[k] == row[k + 1]) {
            k++;
            continue;
        }
        const int up = row[k + 1] < row[k];
        const int64_t begin = k++;
        while (k < n && (row[k] == row[k + 1] || (row[k + 1] < row[k]) == up)) k++;
        chains[num++] = (Chain){up ? row[k] : row[begin], up ? row[begin] : row[k], up ? 1 : -1, place};
        for (int64_t j = begin; j < k; j++) {
            const int64_t e = up ? begin + k - 1 - j : j, after = e + 1 < n ? e + 1 : 0;
            const double *upper = v + 2 * (up ? after : e), *lower = v + 2 * (up ? e : after);
            const int64_t top = up ? row[e + 1] : row[e], count = (up ? row[e] : row[e + 1]) - top;
            if (count == 0) continue;
            const double at = upper[0] - 0.5 + (top + 0.5 - upper[1]) * slope[e];
            if (write_columns(columns + place, count, at, slope[e], width))
                for (int64_t i = 0; i < count; i++) columns[place + i] = exact_column(upper, lower, top + i, width);
            place += count;
        }
    }
    return num;
}

static int seen_whole(const double *v, int64_t n) {
    double mx = 0.0, my = 0.0;
    for (int64_t k = 0; k < n; k++) mx += v[2 * k], my += v[2 * k + 1];
    mx /= n, my /= n;
    int64_t right = 0, left = 0, around = 0;
    double x0 = v[2 * n - 2] - mx, y0 = v[2 * n - 1] - my;
    for (int64_t k = 0; k < n; k++) {
        const double x1 = v[2 * k] - mx, y1 = v[2 * k + 1] - my, cross = x0 * y1 - x1 * y0;
        right += cross > 1e-6, left += cross < -1e-6, around += (y0 < 0.0) & (y1 >= 0.0);
        x0 = x1, y0 = y1;
    }
    return around == 1 && (right == n || left == n);
}

static void add_sums(int64_t *sums, int64_t sign, const double *restrict c, int64_t top, int64_t num, const Table *t) {
    double true_px = 0.0, area = 0.0, squares = 0.0, products = 0.0;
    for (int64_t i = 0; i < num; i++) {
        const double a = t->left[top + i], b = t->right[top + i], column = c[i], over = column > a ? column : a;
        true_px += (over < b ? over : b) - a;
        area += column;
        squares += column * column;
        products += column * (2.0 * (double)(int)(top + i) + 1.0);
    }
    for (int64_t p = 1; p < t->places; p++) {
        const int64_t first = top > t->rows[2 * p] ? top : t->rows[2 * p];
        const int64_t end = top + num < t->rows[2 * p + 1] ? top + num : t->rows[2 * p + 1];
        const double *left = t->left + p * t->height, *right = t->right + p * t->height;
        for (int64_t i = first; i < end; i++) {
            const double over = c[i - top] > left[i] ? c[i - top] : left[i];
            true_px += (over < right[i] ? over : right[i]) - left[i];
        }
    }
    sums[0] += sign * (int64_t)true_px, sums[1] += sign * (int64_t)area;
    sums[2] += sign * (int64_t)squares, sums[3] += sign * (int64_t)products;
}

static int by_value(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int slab_in_order(const double *columns, int64_t *places, int64_t *turns, int64_t num, int64_t rows) {
    for (int64_t j = 1; j < num; j++) {
        const int64_t place = places[j], turn = turns[j];
        const double middle = columns[place + rows / 2], last = columns[place + rows - 1];
        int64_t k = j;
        for (; k > 0; k--) {
            const double other = columns[places[k - 1] + rows / 2];
            if (other < middle || (other == middle && columns[places[k - 1] + rows - 1] <= last)) break;
            places[k] = places[k - 1], turns[k] = turns[k - 1];
        }
        places[k] = place, turns[k] = turn;
    }
    for (int64_t j = 0; j + 1 < num; j++) {
        int worse = 0;
        for (int64_t i = 0; i < rows; i++) worse += columns[places[j] + i] > columns[places[j + 1] + i];
        if (worse) return 0;
    }
    return 1;
}

static int sum_slabs(int64_t *sums, const Chain *chains, int64_t num_chains, const double *columns, const Table *t) {
    int64_t events[2 * MAX_SLAB_CHAINS], places[MAX_SLAB_CHAINS], turns[MAX_SLAB_CHAINS];
    for (int64_t c = 0; c < num_chains; c++) events[2 * c] = chains[c].first, events[2 * c + 1] = chains[c].end;
    qsort(events, 2 * num_chains, sizeof *events, by_value);
    for (int64_t n = 0; n + 1 < 2 * num_chains; n++) {
        const int64_t top = events[n], bottom = events[n + 1];
        int64_t num = 0, winding = 0;
        if (top == bottom) continue;
        for (int64_t c = 0; c < num_chains; c++)
            if (chains[c].first <= top && chains[c].end >= bottom) {
                places[num] = chains[c].place + top - chains[c].first;
                turns[num++] = chains[c].turn;
            }
        if (!slab_in_order(columns, places, turns, num, bottom - top)) return 0;
        for (int64_t j = 0; j < num; j++) {
            const int64_t before = winding;
            winding += turns[j];
            if (before == 0 || winding == 0)
                add_sums(sums, winding == 0 ? 1 : -1, columns + places[j], top, bottom - top, t);
        }
    }
    return 1;
}

/* The general way: rows of crossings, sorted; chains hold the columns already. */
static void sum_rows(int64_t *sums, const Chain *chains, int64_t num_chains, const double *columns, const Table *t) {
    int64_t *keys = malloc(num_chains * sizeof *keys);
    for (int64_t i = 0; i < t->height; i++) {
        int64_t num = 0, winding = 0, start = 0;
        for (int64_t c = 0; c < num_chains; c++)
            if (chains[c].first <= i && i < chains[c].end)
                keys[num++] = 2 * (int64_t)columns[chains[c].place + i - chains[c].first] + (chains[c].turn > 0);
        qsort(keys, num, sizeof *keys, by_value);
        for (int64_t j = 0; j < num; j++) {
            const int64_t column = keys[j] >> 1, before = winding;
            winding += keys[j] & 1 ? 1 : -1;
            if (before == 0) start = column;
            if (winding != 0) continue;
            sums[1] += column - start;
            sums[2] += column * column - start * start;
            sums[3] += (column - start) * (2 * i + 1);
            for (int64_t p = 0; p < t->places; p++) {
                const int64_t left = (int64_t)t->left[p * t->height + i], right = (int64_t)t->right[p * t->height + i];
                const int64_t first = start > left ? start : left, end = column < right ? column : right;
                sums[0] += end > first ? end - first : 0;
            }
        }
    }
    free(keys);
}

/* sums: [answers][4], as `overlap` of rewards/kernels.py returns them. Coordinates must be under 1e5. */
void overlap(const double *vertices, const int64_t *offsets, int64_t answers, const double *left, const double *right,
             const int64_t *rows, int64_t places, int64_t height, int64_t width, int64_t *sums) {
    const Table table = {left, right, rows, places, height};
    int64_t longest = 1, capacity = 0;
    for (int64_t a = 0; a < answers; a++)
        if (offsets[a + 1] - offsets[a] > longest) longest = offsets[a + 1] - offsets[a];
    int32_t *row = malloc((longest + 1) * sizeof *row);
    double *slope = malloc(longest * sizeof *slope), *columns = NULL;
    Chain *chains = malloc(longest * sizeof *chains);
    memset(sums, 0, answers * 4 * sizeof *sums);
    for (int64_t a = 0; a < answers; a++) {
        const double *v = vertices + 2 * offsets[a];
        const int64_t n = offsets[a + 1] - offsets[a];
        int64_t *mine = sums + 4 * a;
        if (n == 0) continue;
        for (int64_t k = 0; k < n; k++) {
            double first = ceil(v[2 * k + 1] - 0.5);
            first = first > 0.0 ? first : 0.0;
            row[k] = (int32_t)(first < height ? first : height);
        }
        row[n] = row[0];
        int64_t crossed = 0;
        for (int64_t k = 0; k < n; k++) crossed += abs(row[k + 1] - row[k]);
        if (crossed + LANES > capacity) {
            capacity = 2 * crossed + LANES;
            free(columns);
            columns = malloc(capacity * sizeof *columns);
        }
        for (int64_t k = 0; k < n; k++) {
            const int64_t after = k + 1 < n ? k + 1 : 0;
            const double dy = v[2 * after + 1] - v[2 * k + 1];
            slope[k] = (v[2 * after] - v[2 * k]) / (dy != 0.0 ? dy : 1.0);
        }
        const int64_t num = add_chains(v, n, row, slope, width, columns, chains);
        if (seen_whole(v, n)) {
            for (int64_t c = 0; c < num; c++)
                add_sums(mine, chains[c].turn, columns + chains[c].place, chains[c].first,
                         chains[c].end - chains[c].first, &table);
            if (mine[1] < 0)
                for (int64_t k = 0; k < 4; k++) mine[k] = -mine[k];
        } else if (num > MAX_SLAB_CHAINS || !sum_slabs(mine, chains, num, columns, &table)) {
            memset(mine, 0, 4 * sizeof *mine);
            sum_rows(mine, chains, num, columns, &table);
        }
    }
    free(row), free(slope), free(columns), free(chains);
}
