import java.util.TreeSet;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.security.GroupMappingServiceProvider;
import org.apache.hadoop.util.ReflectionUtils;

/** Prints the groups of the users, a line each, by the group mapping of the core-site.xml on the class path. */
public class GroupsOf {
    public static void main(String[] users) throws Exception {
        Configuration conf = new Configuration();
        var mapping = (GroupMappingServiceProvider) ReflectionUtils.newInstance(conf.getClass("hadoop.security.group.mapping", null), conf);
        for (String user : users) {
            System.out.println(user + ": " + String.join(" ", new TreeSet<>(mapping.getGroups(user))));
        }
    }
}
