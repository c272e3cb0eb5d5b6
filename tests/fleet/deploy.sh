#!/bin/bash
# A deploy command that leaves two lines in the file `deploys` beside the hosts' folders: time, host, commit, and `begin`
# or `end`. It fails if the tree has the file `bad`, or the host's folder the file `spoiled`.
set -eu
folder=${GITOPS_ROOT%/root}
note() { printf '%s %s %s %s\n' "$(date +%s.%N)" "${folder##*/}" "$GITOPS_AFTER" "$1" >>"${folder%/*}/deploys"; }
note begin
sleep 0.2
note end
[[ ! -e bad && ! -e $folder/spoiled ]] || { echo 'the health check failed' >&2; exit 3; }
