package columns

import "math/bits"

const predictors = 8

// predict gives the guesses for a cell's next number.
func (col *column) predict(x *cell, t, t0 int64, out *[predictors]int64) {
	d := x.p1 - x.p2
	out[0] = x.p1
	out[1] = x.p1 + d
	out[2] = x.p1 + (t - t0)
	out[3] = x.p1 + (t-t0)/1000
	out[4] = col.any
	out[5] = x.slow >> 4
	out[6] = x.p1 + d/2
	out[7] = x.p1 - (x.p1-x.slow>>4)/4
}

// value codes the number v, in units of the column's scale.
func (s *state) value(col *column, x *cell, v, t, t0 int64) int64 {
	c := &s.c
	var guess [predictors]int64
	best := 0
	if x.n == 0 {
		for i := range guess {
			guess[i] = col.any
		}
	} else {
		col.predict(x, t, t0, &guess)
		for i := 1; i < predictors; i++ {
			if col.cost[i] < col.cost[best] {
				best = i
			}
		}
	}
	class := min(bits.Len64(x.r1+x.r2)+1, 8)
	if x.n == 0 {
		class = 9
	} else if x.r1 == 0 && x.r2 == 0 {
		class = 0
	}
	m := col.classes[class]
	if m == nil {
		m = newNumber()
		col.classes[class] = m
		s.size += 700
	}
	r := v - guess[best]
	abs := uint64(r)
	neg := 0
	if r < 0 {
		abs, neg = -abs, 1
	}
	if abs = c.number(m, abs); abs != 0 {
		neg = c.bit(&col.sign[x.s+1], neg)
	}
	r = int64(abs)
	if neg == 1 && abs != 0 {
		r = -r
	}
	v = guess[best] + r
	x.s = int8(min(1, abs)) * int8(1-2*neg)
	x.r2, x.r1 = x.r1, abs
	if x.n > 0 {
		for i := range guess {
			e := v - guess[i]
			if e < 0 {
				e = -e
			}
			k := int32(bits.Len64(uint64(e)))
			// Half bits, by the second digit.
			k *= 2
			if k > 2 && uint64(e)>>(k/2-2)&1 == 1 {
				k++
			}
			col.cost[i] += (k<<10 - col.cost[i]) / 32
		}
	}
	x.p2 = x.p1
	if x.n == 0 {
		x.p2, x.slow = v, v<<4
	} else {
		x.slow += (v<<4 - x.slow) / 16
	}
	x.p1 = v
	if x.n < 2 {
		x.n++
	}
	col.any, col.seen = v, true
	return v
}

var pow10 = [19]int64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18}

const maxValue = 1 << 57 // of a number in units of its column's scale

// rescale raises a column's decimals; every device's last values with it.
func (t *template) rescale(i, scale int) {
	col := t.columns[i]
	f := pow10[scale-col.scale]
	fit := func(v int64) int64 { // what does not fit is forgotten, alike on both ends
		if h := int64(maxValue) / f; v > h || v < -h {
			return 0
		}
		return v * f
	}
	col.any = fit(col.any)
	for _, cl := range t.cells {
		x := &cl.v[i]
		x.p1, x.p2 = fit(x.p1), fit(x.p2)
		x.slow = x.p1 << 4
		x.r1, x.r2 = 0, 0
	}
	col.scale = scale
}

func fits(v int64, scale int) bool {
	h := int64(maxValue) / pow10[scale]
	return v <= h && v >= -h
}
