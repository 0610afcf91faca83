/* The shuffle of Python's random.Random, with the same numbers of the Mersenne twister MT19937
 * (Matsumoto and Nishimura, ACM TOMACS 8, 1998). See shuffling.py. */

#include <stdint.h>

enum { WORDS = 624, SHIFT = 397 };

static void generate(uint32_t *words)
{
    for (int i = 0; i < WORDS; i++) {
        const uint32_t y = (words[i] & 0x80000000u) | (words[(i + 1) % WORDS] & 0x7fffffffu);
        words[i] = words[(i + SHIFT) % WORDS] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
    }
}

static uint32_t next(uint32_t *words, int64_t *used)
{
    if (*used >= WORDS) {
        generate(words);
        *used = 0;
    }
    uint32_t y = words[(*used)++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

/* Exchanges each of the `count` values, from the last down, with a value at a random place up to its own.
 * `words` and `used` are the state of the generator. A place is made of as many bits as the number of
 * places has; numbers that are too large are drawn again. */
void shuffle(uint32_t *words, int64_t *used, int64_t count, int64_t *values)
{
    for (int64_t last = count - 1; last > 0; last--) {
        const int bits = 64 - __builtin_clzll((unsigned long long)last + 1);
        int64_t place;
        do
            place = next(words, used) >> (32 - bits);
        while (place > last);
        const int64_t value = values[last];
        values[last] = values[place];
        values[place] = value;
    }
}
