"""A small program in XLA's text, by hand: loops within loops, a condition, every collective, four
ways to name a group.

Eight devices. Per run: the outer loop 3 times, the inner one 5 times in each turn (its bound comes
in with the loop's values), a loop of unknown length, and a condition."""

TEXT = """HloModule by_hand, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[100], s32[])) -> (s32[], f32[100], s32[]) {
  %p = (s32[], f32[100]{0:T(128)}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[100]{0:T(128)} get-tuple-element(%p), index=1
  %n = s32[] get-tuple-element(%p), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %ar = f32[100]{0:T(128)} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  ROOT %t = (s32[], f32[100]{0:T(128)}, s32[]) tuple(%next, %ar, %n)
}

%inner_condition (p.1: (s32[], f32[100], s32[])) -> pred[] {
  %p.1 = (s32[], f32[100]{0:T(128)}, s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %n.1 = s32[] get-tuple-element(%p.1), index=2
  ROOT %lt = pred[] compare(%i.1, %n.1), direction=LT
}

%outer_body (q: (s32[], f32[100])) -> (s32[], f32[100]) {
  %q = (s32[], f32[100]{0:T(128)}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %y = f32[100]{0:T(128)} get-tuple-element(%q), index=1
  %zero = s32[] constant(0)
  %five = s32[] constant(5)
  %init = (s32[], f32[100]{0:T(128)}, /*index=2*/s32[]) tuple(%zero, %y, %five)
  %inner = (s32[], f32[100]{0:T(128)}, s32[]) while(%init), condition=%inner_condition, body=%inner_body
  %z = f32[100]{0:T(128)} get-tuple-element(%inner), index=1
  %ag-start = (f32[100]{0:T(128)}, f32[800]{0:T(128)}) all-gather-start(%z), replica_groups=[1,8]<=[8], dimensions={0}
  %ag = f32[800]{0:T(128)} all-gather-done(%ag-start)
  %one.1 = s32[] constant(1)
  %next.1 = s32[] add(%j, %one.1)
  ROOT %t.1 = (s32[], f32[100]{0:T(128)}) tuple(%next.1, %z)
}

%outer_condition (q.1: (s32[], f32[100])) -> pred[] {
  %q.1 = (s32[], f32[100]{0:T(128)}) parameter(0)
  %j.1 = s32[] get-tuple-element(%q.1), index=0
  %three = s32[] constant(3)
  ROOT %lt.1 = pred[] compare(%j.1, %three), direction=LT
}

%traced_body (r: (s32[], f32[100], s32[])) -> (s32[], f32[100], s32[]) {
  %r = (s32[], f32[100]{0:T(128)}, s32[]) parameter(0)
  %k = s32[] get-tuple-element(%r), index=0
  %u = f32[100]{0:T(128)} get-tuple-element(%r), index=1
  %m = s32[] get-tuple-element(%r), index=2
  %cp = f32[100]{0:T(128)} collective-permute(%u), source_target_pairs={{0,1},{1,0}}
  ROOT %t.2 = (s32[], f32[100]{0:T(128)}, s32[]) tuple(%k, %cp, %m)
}

%traced_condition (r.1: (s32[], f32[100], s32[])) -> pred[] {
  %r.1 = (s32[], f32[100]{0:T(128)}, s32[]) parameter(0)
  %k.1 = s32[] get-tuple-element(%r.1), index=0
  %m.1 = s32[] get-tuple-element(%r.1), index=2
  ROOT %lt.2 = pred[] compare(%k.1, %m.1), direction=LT
}

%nothing (v: f32[100]) -> f32[100] {
  ROOT %v = f32[100]{0:T(128)} parameter(0)
}

%scatters (v.1: f32[100]) -> f32[100] {
  %v.1 = f32[100]{0:T(128)} parameter(0)
  %rs = bf16[25]{0:T(256)} reduce-scatter(%v.1), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}, to_apply=%sum
  ROOT %back = f32[100]{0:T(128)} copy(%v.1)
}

%sliced (w: f32[24,1024], l: s32[]) -> f32[1024] {
  %w = f32[24,1024]{1,0:T(8,128)} parameter(0)
  %l = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %slice = f32[1,1024]{1,0:T(1,128)} dynamic-slice(%w, %l, %zero.1), dynamic_slice_sizes={1,1024}
  ROOT %flat = f32[1024]{0:T(1024)} bitcast(%slice)
}

ENTRY %main (arg: f32[100], weights: f32[24,1024], depth: s32[]) -> f32[100] {
  %arg = f32[100]{0:T(128)} parameter(0)
  %weights = f32[24,1024]{1,0:T(8,128)} parameter(1)
  %depth = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  %init.1 = (s32[], f32[100]{0:T(128)}) tuple(%zero.2, %arg)
  %outer = (s32[], f32[100]{0:T(128)}) while(%init.1), condition=%outer_condition, body=%outer_body
  %g = f32[100]{0:T(128)} get-tuple-element(%outer), index=1
  %init.2 = (s32[], f32[100]{0:T(128)}, s32[]) tuple(%zero.2, %g, %depth)
  %traced = (s32[], f32[100]{0:T(128)}, s32[]) while(%init.2), condition=%traced_condition, body=%traced_body
  %h = f32[100]{0:T(128)} get-tuple-element(%traced), index=1
  %a2a = f32[100]{0:T(128)} all-to-all(%h), replica_groups={}, dimensions={0}
  %row = f32[1024]{0:T(1024)} fusion(%weights, %depth), kind=kLoop, calls=%sliced, backend_config={"estimated_cycles":"1825"}
  ROOT %cond = f32[100]{0:T(128)} conditional(%depth, %a2a, %a2a), branch_computations={%nothing, %scatters}
}
"""
