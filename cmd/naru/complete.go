package main

import (
	"context"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// listed are the things that have names, by the word that a command's Use line or flag has for one: where the platform lists
// them, and under what the name stands in its answer.
var listed = map[string]struct{ path, list, name string }{
	"DEVICE":      {"/api/v1/devices", "devices", "id"},
	"RULE":        {"/api/v1/rules", "rules", "name"},
	"WORKER":      {"/api/v1/workers", "workers", "name"},
	"DESTINATION": {"/api/v1/destinations", "destinations", "name"},
	"DATASET":     {"/api/v1/data/datasets", "", "name"},
	"LETTER":      {"/api/v1/dead", "letters", "id"},
	"JOB":         {"/api/v1/dead/jobs", "", "id"},
	"LOG":         {"/api/v1/logs", "logs", "log"},
	"COMPONENT":   {"/api/v1/status", "components", "name"},
	"CONSUMER":    {"/api/v1/ledger", "", "consumer"},
}

// completeWait is for how long a shell waits for names.
const completeWait = 2 * time.Second

// completes has shells offer the names that there are, for the arguments and flags of a command and those below it.
func completes(o *options, c *cobra.Command) {
	for _, sub := range c.Commands() {
		completes(o, sub)
	}
	c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		kind := strings.ToUpper(f.Name)
		if _, ok := listed[kind]; ok {
			_ = c.RegisterFlagCompletionFunc(f.Name, func(c *cobra.Command, _ []string, begins string) ([]string, cobra.ShellCompDirective) {
				return o.names(c.Context(), kind, begins), cobra.ShellCompDirectiveNoFileComp
			})
		}
	})
	if c.ValidArgs != nil || c.ValidArgsFunction != nil {
		return
	}
	words := strings.Fields(c.Use)[1:]
	c.ValidArgsFunction = func(c *cobra.Command, args []string, begins string) ([]string, cobra.ShellCompDirective) {
		if len(words) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		at := min(len(args), len(words)-1)
		many := strings.Contains(words[len(words)-1], "…")
		if len(args) >= len(words) && !many {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		kind := strings.Trim(words[at], "[].…")
		if kind == "ID" && (c.Name() == "device" || c.Parent().Name() == "device") {
			kind = "DEVICE"
		}
		if _, ok := listed[kind]; ok {
			return slices.DeleteFunc(o.names(c.Context(), kind, begins), func(n string) bool { return slices.Contains(args, n) }), cobra.ShellCompDirectiveNoFileComp
		}
		if strings.Contains(kind, "FILE") {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// names are those of a kind that begin so, as far as the platform answers soon; what is wrong the command itself will say.
func (o *options) names(ctx context.Context, kind, begins string) (list []string) {
	cl, err := o.client()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, completeWait)
	defer cancel()
	k := listed[kind]
	q := url.Values{}
	if kind == "DEVICE" && begins != "" { // there may be a million: those in order from here on, and this one
		q.Set("after", begins)
		if there, err := cl.registered(ctx, begins); err == nil && there {
			list = append(list, begins)
		}
	}
	var things []map[string]any
	if k.list == "" {
		err = cl.get(ctx, k.path, q, &things)
	} else {
		var in map[string]any
		err = cl.get(ctx, k.path, q, &in)
		all, _ := in[k.list].([]any)
		for _, x := range all {
			thing, _ := x.(map[string]any)
			things = append(things, thing)
		}
	}
	if err != nil {
		return list
	}
	for _, x := range things {
		if name, _ := x[k.name].(string); name != "" && strings.HasPrefix(name, begins) {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
