#!/bin/bash
# The commands that repair a problem (`fix=` in the result). Each works when the user who sees it pastes it: paths are
# real, values are quoted, and a command that must run as the checkout's owner does so. Nothing from the remote, from a
# payload or from a pushed tree is part of a fix, except quoted.

# quote_command WORD...: print a command with its words quoted for a shell.
quote_command() {
    local line
    printf -v line '%q ' "$@"
    printf '%s' "${line% }"
}

# as_root WORD...: print a command that needs root.
as_root() {
    if type -P sudo >/dev/null; then quote_command sudo "$@"; else quote_command "$@"; fi
}

# as_owner WORD...: print a command that runs as the owner of the checkout.
# Needs: checkout.
as_owner() {
    local place=$checkout uid owner
    while [[ ! -e $place ]]; do place=${place%/*}; done
    uid=$(stat -c %u -- "${place:-/}") owner=$(stat -c %U -- "${place:-/}")
    if [[ $owner == UNKNOWN ]]; then owner="#$uid"; fi
    if ((uid == 0)) || [[ -t 1 && $uid == "$EUID" ]]; then
        quote_command "$@"
    elif type -P sudo >/dev/null; then
        quote_command sudo -u "$owner" "$@"
    else
        quote_command setpriv --reuid="$uid" --regid="$(stat -c %g -- "$place")" --clear-groups "$@"
    fi
}

# Print the name of the user who runs this script, or the number of a user without an entry in the passwd database.
user_name() { id -un 2>/dev/null; }

give_to_user() { as_root chown -R "$(user_name)" "$checkout"; }

git_fix() { as_owner git -C "$checkout" "$@"; }

# unset_fix NAME: remove a setting from the file that contains it. Needs: setting_file.
unset_fix() { as_owner git config --file "${setting_file[${1,,}]:-$GIT_DIR/config}" --unset-all "gitops.$1"; }

# hook_fix COMMAND [OPTION...]: a command of gitops-hook for this checkout. Returns 1 if it is not installed here.
# Needs: repository, name.
hook_fix() {
    type -P gitops-hook >/dev/null && as_root gitops-hook "$@" "${repository:+${repository%/*}/}$name"
}

# Deploy the target although its health check failed. Needs: setting.
deploy_fix() { hook_fix deploy --force ${setting[pin]:+--commit "${setting[pin]}"} || force_fix; }

# The same on a host without gitops-hook. Needs: script, name, repository, GITOPS_ROOT.
force_fix() {
    as_owner env GITOPS_ROOT="$GITOPS_ROOT" ${repository:+"GITOPS_REPOSITORY=$repository"} "$script" --force "$name"
}

# Let the checkout follow its repository to the new name. Needs: repository, name, renamed.
rename_fix() { type -P gitops-hook >/dev/null && as_root gitops-hook rename "${repository:-$name}" "$renamed"; }

# url_fix URL WANTED: set origin to the URL of the repository WANTED at the same host, or print nothing.
url_fix() {
    local url=${GITOPS_CLONE_URL:-} suffix='' base
    if [[ ! $url ]]; then
        base=$1
        while [[ $base == */ ]]; do base=${base%/}; done
        if [[ $base == *.git ]]; then suffix=.git base=${base%.git}; fi
        [[ $base =~ ^(.*[/:])[^/:]+/[^/:]+$ && $2 == */* ]] || return 0
        url=${BASH_REMATCH[1]}$2$suffix
    fi
    # The fix appears on the status page, so it must not contain a password.
    [[ $url =~ ^[^/]*://[^/]*:[^/]*@ ]] || git_fix remote set-url origin "$url"
}

# Print the command that shows the key of `gitops-hook add --ssh-key` and where to enter it, or nothing. Needs: config.
deploy_key_fix() {
    [[ ! ${config[core.sshcommand]:-} =~ UserKnownHostsFile=[^\ \'\"]+/known_hosts ]] || hook_fix add --ssh-key
}

# Print the command that edits the file of `gitops-hook add --token-file`, or nothing. Needs: config.
token_fix() {
    local helper='' key
    for key in "${!config[@]}"; do
        if [[ $key == credential.*.helper && ${config[$key]} == '!f() { [ '*'; f <'* ]]; then helper=${config[$key]}; fi
    done
    # The rest of the helper is the quoted name of the file.
    [[ ! $helper ]] || ! type -P sudoedit >/dev/null || printf 'sudoedit %s' "${helper##*'; f <'}"
}

# host_key_fix: print the command with which the owner can compare and accept the host key of the remote, or nothing.
# Needs: config, remote_messages.
host_key_fix() {
    local command=${config[core.sshcommand]:-}
    if [[ $command =~ UserKnownHostsFile=([^\ \'\"]+/known_hosts) ]]; then # pinned by `gitops-hook add --ssh-key`
        command=$(hook_fix add --ssh-key) && printf '%s && %s' "$(as_root rm -f -- "${BASH_REMATCH[1]}")" "$command"
        return
    fi
    local url=${config[remote.origin.url]:-} host port=''
    if [[ $url =~ ^ssh://([^/]+)/ ]]; then
        host=${BASH_REMATCH[1]}
        if [[ $host =~ ^(.*):([0-9]+)$ ]]; then host=${BASH_REMATCH[1]} port=${BASH_REMATCH[2]}; fi
    elif [[ $url =~ ^([^/:]+):[^:] ]]; then
        host=${BASH_REMATCH[1]}
    else
        return
    fi
    [[ $host != -* ]] || return
    if [[ $remote_messages == *'IDENTIFICATION HAS CHANGED'* ]]; then
        host=${host#*@}
        as_owner ssh-keygen -R "${port:+[}$host${port:+]:$port}"
    else
        as_owner ssh -T -o StrictHostKeyChecking=ask ${port:+-p "$port"} "$host"
    fi
}
